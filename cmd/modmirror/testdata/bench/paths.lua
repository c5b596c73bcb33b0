-- Asks for every path of a file in turn, over and over, and prints one line of numbers at the end:
-- wrk [options] -s paths.lua URL -- FILE
local requests, next = {}, 0

function init(args)
	for path in io.lines(args[1]) do
		requests[#requests + 1] = wrk.format("GET", path)
	end
	next = math.random(#requests) - 1
end

function request()
	next = next % #requests + 1
	return requests[next]
end

function done(summary, latency)
	local e = summary.errors
	io.write(string.format("measured requests=%d us=%d bytes=%d errors=%d p50us=%d p99us=%d\n",
		summary.requests, summary.duration, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
		latency:percentile(50), latency:percentile(99)))
end
