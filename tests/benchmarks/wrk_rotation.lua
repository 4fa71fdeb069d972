-- For wrk: POST prepared bodies in rotation, and count the answers within a window.
--   wrk ... -s wrk_rotation.lua URL -- FOLDER COUNT WARM_UP_SECONDS SECONDS HEADER VALUE [HEADER VALUE ...]
-- The bodies are FOLDER/0 to FOLDER/COUNT-1. One thread only (-t1): each has a state of its own.

local ffi = require("ffi")
ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } moment;
int clock_gettime(int clock, moment *now);
]]
local now = ffi.new("moment")

local function seconds()
  ffi.C.clock_gettime(1, now) -- CLOCK_MONOTONIC
  return tonumber(now.seconds) + tonumber(now.nanoseconds) * 1e-9
end

local requests, turn = {}, 0
local window_begins, window_ends
threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  local folder, count = arguments[1], tonumber(arguments[2])
  warm_up, length = tonumber(arguments[3]), tonumber(arguments[4])
  for index = 5, #arguments, 2 do
    wrk.headers[arguments[index]] = arguments[index + 1]
  end
  for index = 0, count - 1 do
    local file = assert(io.open(folder .. "/" .. index, "rb"))
    requests[index] = wrk.format("POST", wrk.path, wrk.headers, file:read("*a"))
    file:close()
  end
  size = count
  answers = 0
end

-- wrk asks for a request when a connection opens, and then whenever an answer is complete: every call but the
-- first of each connection tells of an answer. wrk itself would divide all answers by all of the time, including the
-- time in which the first ones were computed, which is a lot where an answer takes half a second.
function request()
  local moment = seconds()
  if window_begins == nil then
    window_begins = moment + warm_up
    window_ends = window_begins + length
  end
  if moment >= window_begins and moment < window_ends then
    answers = answers + 1
  end
  turn = (turn + 1) % size
  return requests[turn]
end

function done(summary, latency)
  local found = summary.errors
  io.write(string.format(
    '\nrotation {"answers": %d, "p50_us": %d, "p99_us": %d, "requests": %d, "refused": %d, "broken": %d}\n',
    threads[1]:get("answers"), latency:percentile(50), latency:percentile(99), summary.requests, found.status,
    found.connect + found.read + found.write + found.timeout))
end
