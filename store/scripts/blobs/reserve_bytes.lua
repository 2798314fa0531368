-- Space for bytes that are about to arrive.
--
-- keys: the tenant's stored bytes, its reservations
-- arguments: holder, bytes, limit, now_s, until_s
--
-- Returns {1 if there is space, bytes that are stored or reserved by others}.

local given = cjson.decode(ARGV[1])
local stored, reservations = unpack(KEYS)
local used = tonumber(redis.call('HGET', stored, 'total') or '0')
local held = redis.call('HGETALL', reservations)
for i = 1, #held, 2 do
  local holder, bytes, ends = held[i], string.match(held[i + 1], '(%d+) (%d+)')
  if tonumber(ends) < given.now_s then redis.call('HDEL', reservations, holder)
  elseif holder ~= given.holder then used = used + tonumber(bytes) end
end
if used + given.bytes > given.limit then return {0, used} end
redis.call('HSET', reservations, given.holder, string.format('%.0f %.0f', given.bytes, given.until_s))
return {1, used}
