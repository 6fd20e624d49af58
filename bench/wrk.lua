-- What wrk's own options cannot say: "post N" is POST with a body of N bytes,
-- "pipeline N" is N requests behind one another without waiting for answers.

function init(args)
   if args[1] == "post" then
      wrk.method = "POST"
      wrk.body = string.rep("x", tonumber(args[2]))
   elseif args[1] == "pipeline" then
      local batch = string.rep(wrk.format(), tonumber(args[2]))
      request = function() return batch end
   end
end
