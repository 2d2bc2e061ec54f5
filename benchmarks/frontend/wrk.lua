-- wrk -s wrk.lua URL -- WORKLOAD.lua TOKEN SEED: requests from the parts that workload.py wrote.
-- The last line of the output is one JSON object, read by load.py.

local random, concat = math.random, table.concat
local parts, sentences
local number, fixed, text = 0, nil, {}

function init(args)
  local work = dofile(args[1])
  math.randomseed(tonumber(args[3]))
  number = random(1e8)
  parts, sentences = work.parts, work.sentences
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. args[2]
  fixed = true
  for _, part in ipairs(parts) do
    fixed = fixed and type(part) == "table" and #part == 1
  end
  if fixed then fixed = wrk.format(nil, nil, nil, body()) end
end

function body()
  local n = 0
  for _, part in ipairs(parts) do
    if type(part) == "table" then
      n = n + 1
      text[n] = part[random(#part)]
    else
      number = number + 1
      n = n + 1
      text[n] = "Case " .. number .. "."
      for _ = 1, part do
        text[n + 1] = " "
        text[n + 2] = sentences[random(#sentences)]
        n = n + 2
      end
    end
  end
  return concat(text, "", 1, n)
end

function request()
  return fixed or wrk.format(nil, nil, nil, body())
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"p50_us":%d,"p99_us":%d,"errors":%d,"cpu_s":%.3f}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout, os.clock()))
end
