-- Redis's own clock, which all of its clients share.

local function microseconds()
  local clock = redis.call('TIME')
  return clock[1] * 1000000 + clock[2]
end

local function milliseconds() return math.floor(microseconds() / 1000) end

-- Lua writes large numbers as 1.7e+12; sorted sets and hashes are to hold all their digits.
local function digits(number) return string.format('%.0f', number) end
