-- The bytes of a blob are gone.
--
-- keys: deletions
-- arguments: blob, deadline
--
--   deadline  of the deletion that is done; if another has begun meanwhile, that one stays

local given = cjson.decode(ARGV[1])
if tonumber(redis.call('ZSCORE', KEYS[1], given.blob) or '0') == given.deadline then
  redis.call('ZREM', KEYS[1], given.blob)
end
