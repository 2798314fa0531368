-- Requests of a tenant that are let through, after GCRA (`store/tenancy/rates.py`).
--
-- keys: when the allowance is full again, in us
-- arguments: limit, window_us, most
-- uses: ../clock.lua
--
--   limit  requests in a window
--   most   how many are asked for
--
-- Returns {how many are let through, how many are left, us until the allowance is full}; of none, us until there is one.

local given = cjson.decode(ARGV[1])
local now = microseconds()
local interval = given.window_us / given.limit
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
local count = math.min(given.most, math.floor((given.window_us + 0.5 - (full - now)) / interval))
if count < 1 then return {0, 0, math.ceil(full + interval - now - given.window_us)} end
local after = full + count * interval
redis.call('SET', KEYS[1], digits(after), 'PX', math.ceil((after - now) / 1000) + 1)
return {count, math.floor((given.window_us - (after - now)) / interval), math.ceil(after - now)}
