-- What refers to builds and configs is looked for when old ones go.
CREATE INDEX releases_build ON releases (build);
CREATE INDEX releases_config ON releases (config);
CREATE INDEX rollouts_build ON rollouts (build);
CREATE INDEX rollouts_config ON rollouts (config);
CREATE INDEX live_sets_build ON live_sets (build);
CREATE INDEX live_sets_config ON live_sets (config);

-- What was done to an app goes with it, from now on and of apps that are gone; but not who deleted it.
UPDATE activity SET app = '' WHERE app NOT IN (SELECT uuid FROM apps) AND text LIKE username || ' deleted %';
DELETE FROM activity WHERE app <> '' AND app NOT IN (SELECT uuid FROM apps);
