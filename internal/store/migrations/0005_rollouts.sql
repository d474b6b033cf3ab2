-- What was live before a rollout, so that it can be undone, and what it does in its state.
ALTER TABLE rollouts ADD COLUMN former TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN step TEXT NOT NULL DEFAULT '';

-- The engine's ID of an instance's container, and how often it was started again.
ALTER TABLE instances ADD COLUMN container TEXT NOT NULL DEFAULT '';
ALTER TABLE instances ADD COLUMN restarts BIGINT NOT NULL DEFAULT 0;
