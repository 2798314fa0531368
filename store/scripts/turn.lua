-- Whose turn it is: the oldest waiting job of the tenant that has the fewest running, and of those the one that was served
-- longest ago. A message only says that there is work; which, is decided here, so that a thousand jobs of one tenant never
-- stand before the first of another.
--
-- ARGV  1 key prefix   2 the job a message named   3 how many jobs of a tenant may run
-- Returns a job id; the named one where there is nothing to choose.

local prefix = ARGV[1]
local line = redis.call('HGET', prefix .. 'job:' .. ARGV[2], 'line')
if not line then return ARGV[2] end

local best, fewest, longest
for _, tenant in ipairs(redis.call('SMEMBERS', prefix .. 'line:' .. line)) do
  local mine = prefix .. 'tenant:' .. tenant .. ':'
  local running = redis.call('ZCARD', mine .. 'jobs:status:running') + redis.call('ZCARD', mine .. 'jobs:status:canceling')
  local served = tonumber(redis.call('HGET', prefix .. 'turns', tenant) or '0')
  if running < tonumber(ARGV[3]) and (not best or running < fewest or (running == fewest and served < longest)) then
    best, fewest, longest = mine .. 'line:' .. line, running, served
  end
end
return best and redis.call('ZRANGE', best, 0, 0)[1] or ARGV[2]
