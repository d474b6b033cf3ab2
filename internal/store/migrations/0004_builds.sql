-- SBOM and provenance of builds, packed: JSON, compressed by gzip, in base64.
CREATE TABLE build_documents (
	build  TEXT NOT NULL REFERENCES builds (uuid) ON DELETE CASCADE,
	kind   TEXT NOT NULL,
	packed TEXT NOT NULL,
	PRIMARY KEY (build, kind)
);
-- Clearing an app's build cache makes its number another one.
ALTER TABLE apps ADD COLUMN cache BIGINT NOT NULL DEFAULT 0;
