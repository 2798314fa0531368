-- A holder needs a blob for a while.
--
-- keys: references of the blob, the tenant's stored bytes, holds, deletions, the tenant's reservations
-- arguments: holder, sha256, hold, blob, size, for_ms
-- uses: ../clock.lua, deletions.lua
--
--   hold, blob  their names among the holds and the deletions of all tenants
--
-- Returns 0 while the bytes are being deleted, else 1.

local given = cjson.decode(ARGV[1])
local references, stored, holds, deletions, reservations = unpack(KEYS)
if is_being_deleted(deletions, given.blob) then return 0 end
redis.call('ZREM', deletions, given.blob)
redis.call('SADD', references, given.holder)
redis.call('ZADD', holds, digits(milliseconds() + given.for_ms), given.hold)
redis.call('HDEL', reservations, given.holder)
if redis.call('HSETNX', stored, given.sha256, given.size) == 1 then
  redis.call('HINCRBY', stored, 'total', given.size)
end
return 1
