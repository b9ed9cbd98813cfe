-- Versions of resources: one row for each that is kept, where there was one for each id. updated: counts all updates of the
-- namespace, so it is the publish number of the version.

DROP INDEX ls_resources_by_key;
ALTER TABLE ls_resources DROP CONSTRAINT ls_resources_pkey, ADD PRIMARY KEY (ns, updated);
CREATE INDEX ls_resources_by_key ON ls_resources ((ns::bigint), key, updated);
