-- Which jobs of a line to deliver again. A message only says that there is work, so there need not be more messages than
-- waiting jobs; without this count, every job of a long line would get another message every minute.
--
-- arguments: prefix, line, now_ms, waiting_since_ms
--
--   waiting_since_ms  a job must have waited at least since then
--
-- Returns ids. They count as delivered now.

local given = cjson.decode(ARGV[1])
local prefix, line = given.prefix, given.line
local missing, again = -redis.call('LLEN', line), {}
for _, tenant in ipairs(redis.call('SMEMBERS', prefix .. 'line:' .. line)) do
  missing = missing + redis.call('ZCARD', prefix .. 'tenant:' .. tenant .. ':line:' .. line)
end
if missing <= 0 then return again end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'waiting', '-inf', given.waiting_since_ms)) do
  if #again < missing and redis.call('HGET', prefix .. 'job:' .. id, 'line') == line then
    redis.call('ZADD', prefix .. 'waiting', given.now_ms, id)
    table.insert(again, id)
  end
end
return again
