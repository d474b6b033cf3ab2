-- Lists count and page apps without reading their rows.
CREATE INDEX apps_listed ON apps (deleting, seq);
