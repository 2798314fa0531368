-- Whose turn it is: the oldest waiting job of the tenant with the fewest running, and among equals of the one that was
-- served longest ago. A message only says that there is work. Which, is decided here, so that a thousand jobs of one
-- tenant never stand before the first of another.
--
-- arguments: prefix, job, most_running
--
--   job           the one the message named
--   most_running  how many jobs of a tenant may run
--
-- Returns a job id: the named one if there is nothing to choose.

local given = cjson.decode(ARGV[1])
local prefix = given.prefix
local line = redis.call('HGET', prefix .. 'job:' .. given.job, 'line')
if not line then return given.job end

local chosen_line, fewest, longest_ago
for _, tenant in ipairs(redis.call('SMEMBERS', prefix .. 'line:' .. line)) do
  local of_tenant = prefix .. 'tenant:' .. tenant .. ':'
  local running = redis.call('ZCARD', of_tenant .. 'jobs:status:running')
    + redis.call('ZCARD', of_tenant .. 'jobs:status:canceling')
  local served = tonumber(redis.call('HGET', prefix .. 'turns', tenant) or '0')
  local is_before = not chosen_line or running < fewest or (running == fewest and served < longest_ago)
  if running < given.most_running and is_before then
    chosen_line, fewest, longest_ago = of_tenant .. 'line:' .. line, running, served
  end
end
return chosen_line and redis.call('ZRANGE', chosen_line, 0, 0)[1] or given.job
