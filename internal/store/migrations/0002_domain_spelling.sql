-- Domains are kept as they were typed; a host belongs to one app in whatever spelling.
CREATE UNIQUE INDEX domains_host ON domains (lower(name));
