-- The one script that changes a job. It checks owner, status, fencing token, lease and quotas, writes the record, keeps
-- the indexes, appends the events and begins the webhook's delivery, all in one call: they can never disagree.
--
-- keys: job, events, and records that must exist (the model and datasets of a new job)
-- arguments: prefix, id, moves, at, fields, token?, lease_ms?, expired_before_ms?, event?, data?, give_attempt_back?, tenant?, most?
-- payload: the report, compressed, of a job that succeeds
-- uses: ../clock.lua, ../webhooks/deliveries.lua
--
--   moves              {queued = "running", ...}: from "none" makes the job, to "none" deletes it
--   at                 now, ISO 8601
--   fields             of the record, to write
--   token              the job is left alone if its fencing token is another
--   lease_ms           how long the worker has the job from now on
--   expired_before_ms  the job is left alone if its lease ends later
--   event, data        one more event, and its JSON
--   give_attempt_back  the attempt does not count
--   tenant             who asks: a job of another tenant is "none"
--   most               how many jobs of the tenant may be in the new state (queued, if it is new, or running)
--
-- Returns {1, status, revision, token, attempts, was}, and at the end its artifacts if the job is deleted, or
-- {0, status, token, claimed_by} if nothing was changed.

local given = cjson.decode(ARGV[1])
local prefix, id, at, fields, report = given.prefix, given.id, given.at, given.fields, ARGV[2]
local job, events = KEYS[1], KEYS[2]
local FINAL = {succeeded = true, failed = true, canceled = true}
local LEASED = {running = true, canceling = true}

local record = redis.call('HMGET', job, 'status', 'token', 'claimed_by', 'lease_until', 'tenant', 'line')
local was, token, claimed_by, lease_until, tenant, line = unpack(record)
was = was or 'none'
if was == 'none' then tenant, line = fields.tenant, fields.line end

-- 1. May it move?

local function refuse(status) return {0, status or was, token or '0', claimed_by or ''} end

if given.tenant and given.tenant ~= tenant then return {0, 'none', '0', ''} end
local target = given.moves[was]
if not target then return refuse() end
if given.token and given.token ~= tonumber(token) then return refuse() end
if given.expired_before_ms and tonumber(lease_until or '0') > given.expired_before_ms then return refuse() end
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then return refuse('missing:' .. KEYS[i]) end
end

local of_tenant = prefix .. 'tenant:' .. tenant .. ':'
local function jobs_by_status(status) return of_tenant .. 'jobs:status:' .. status end
local function count(status) return redis.call('ZCARD', jobs_by_status(status)) end

if given.most then
  if was == 'none' and count('queued') >= given.most then return refuse('full') end
  -- A job that is asked to stop still has its worker.
  if target == 'running' and count('running') + count('canceling') >= given.most then return refuse() end
end

-- 2. Deletion needs nothing of what follows.

local function indexes() return cjson.decode(redis.call('HGET', job, 'indexes')) end

if target == 'none' then
  for _, index in ipairs(indexes()) do redis.call('ZREM', index, id) end
  redis.call('ZREM', jobs_by_status(was), id)
  local artifacts = redis.call('HGET', job, 'artifacts') or '[]'
  redis.call('DEL', job, events)
  return {1, 'none', 0, '0', '0', was, artifacts}
end

-- 3. The record, its lease and its indexes

local now = milliseconds()

for name, value in pairs(fields) do redis.call('HSET', job, name, value) end
if report then redis.call('HSET', job, 'report', report) end
if given.lease_ms and LEASED[target] then
  local deadline = digits(now + given.lease_ms)
  redis.call('HSET', job, 'lease_until', deadline)
  redis.call('ZADD', prefix .. 'leases', deadline, id)
end

-- Which jobs of the tenant wait in a line, and which tenants have any there: `choose_turn.lua` chooses among them.
local waiting, tenants = of_tenant .. 'line:' .. line, prefix .. 'line:' .. line
local function join_line()
  redis.call('ZADD', waiting, 0, id)
  redis.call('SADD', tenants, tenant)
end
local function leave_line()
  redis.call('ZREM', waiting, id)
  if redis.call('EXISTS', waiting) == 0 then redis.call('SREM', tenants, tenant) end
end
-- A worker has become free for this tenant: the next sweep delivers the first job of each line again.
local function call_next()
  for _, other in ipairs({'small', 'large'}) do
    local first = redis.call('ZRANGE', of_tenant .. 'line:' .. other, 0, 0)[1]
    if first then redis.call('ZADD', prefix .. 'waiting', 'XX', 0, first) end
  end
end
local function keep_artifacts()
  local stored = of_tenant .. 'stored'
  for _, artifact in ipairs(cjson.decode(redis.call('HGET', job, 'artifacts'))) do
    redis.call('SADD', prefix .. 'blob:' .. tenant .. ':' .. artifact.sha256, id)
    if redis.call('HSETNX', stored, artifact.sha256, artifact.size) == 1 then
      redis.call('HINCRBY', stored, 'total', artifact.size)
    end
  end
end
local function tell_webhook()
  local webhook = redis.call('HGET', job, 'webhook')
  if webhook and webhook ~= '' and redis.call('EXISTS', prefix .. 'webhook:' .. webhook) == 1 then
    begin_delivery(prefix, webhook,
      {id = 'dlv_' .. string.sub(id, 5), tenant = tenant, type = 'job.' .. target, job = id, at = at})
  end
end

if was == 'none' then
  redis.call('HSET', job, 'id', id, 'created_at', at)
  for _, index in ipairs(indexes()) do redis.call('ZADD', index, 0, id) end
end
if target ~= was then
  redis.call('HSET', job, 'status', target)
  redis.call('ZREM', jobs_by_status(was), id)
  redis.call('ZADD', jobs_by_status(target), 0, id)
  redis.call('ZREM', prefix .. 'waiting', id)
  if target == 'queued' then
    join_line()
    redis.call('ZADD', prefix .. 'waiting', now, id)
    redis.call('HDEL', job, 'progress', 'started_at', 'lease_until')
    if given.give_attempt_back then redis.call('HINCRBY', job, 'attempts', -1) end
  else
    leave_line()
  end
  if target == 'running' then
    redis.call('HINCRBY', job, 'attempts', 1)
    redis.call('HINCRBY', job, 'token', 1)
    redis.call('HSET', job, 'started_at', at)
    redis.call('HSET', prefix .. 'turns', tenant, redis.call('INCR', prefix .. 'turn'))
  end
  if not LEASED[target] then redis.call('ZREM', prefix .. 'leases', id) end
  if LEASED[was] and not LEASED[target] then call_next() end
  if target == 'succeeded' then keep_artifacts() end
  if FINAL[target] then
    redis.call('HSET', job, 'finished_at', at)
    tell_webhook()
  end
end

-- 4. The revision and the events

local function append(event, data)
  redis.call('XADD', events, 'MAXLEN', '~', 5000, '*', 'event', event, 'data', data, 'at', at)
end

local is_visible = target ~= was or next(fields) ~= nil
local revision = redis.call('HINCRBY', job, 'revision', is_visible and 1 or 0)
local after = redis.call('HMGET', job, 'token', 'attempts', 'error')
if target ~= was then
  local data = string.format('{"status":"%s","revision":%d,"attempts":%d', target, revision, after[2] or 0)
  if after[3] then data = data .. ',"error":' .. after[3] end
  append('state', data .. '}')
  if FINAL[target] then append('done', data .. '}') end
end
if given.event then append(given.event, given.data) end
return {1, target, revision, after[1] or '0', after[2] or '0', was}
