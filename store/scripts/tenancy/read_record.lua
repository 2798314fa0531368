-- The fields of a record, if it is the tenant's. To anyone else it is as if there were none.
--
-- keys: record
-- arguments: tenant
-- constants: FIELDS
--
-- Returns their values, or nil.

if redis.call('HGET', KEYS[1], 'tenant') ~= cjson.decode(ARGV[1]).tenant then return false end
return redis.call('HMGET', KEYS[1], unpack(FIELDS))
