-- A dataset of these bytes: a new one, or the one there is.
--
-- keys: the dataset by digest, the new record, datasets, references of the blob
-- arguments: id, record, tenant
--
-- Returns its id.

local given = cjson.decode(ARGV[1])
local by_digest, record, datasets, references = unpack(KEYS)
local known = redis.call('GET', by_digest)
if known then return known end
redis.call('SET', by_digest, given.id)
redis.call('HSET', record, 'record', given.record, 'tenant', given.tenant)
redis.call('ZADD', datasets, 0, given.id)
redis.call('SADD', references, given.id)
return given.id
