-- The health of a Replay, for Argo CD: it runs once, as a Job does.
local hs = { status = "Progressing", message = "Tidings has not looked at it yet" }
local status = obj.status or {}
if (status.observedGeneration or -1) < (obj.metadata.generation or 0) then
  return hs
end
local sent = (status.sent or 0) .. " of " .. (status.matched or 0) .. " messages sent, "
  .. (status.succeeded or 0) .. " delivered, " .. (status.failed or 0) .. " dead letters again"
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" and condition.type == "Failed" then
    return { status = "Degraded", message = condition.reason .. ": " .. (condition.message or "") }
  end
  if condition.status == "True" and condition.type == "Complete" then
    return { status = "Healthy", message = sent }
  end
  if condition.status == "True" and condition.type == "Reconciling" then
    hs.message = condition.reason .. ": " .. sent
  end
end
return hs
