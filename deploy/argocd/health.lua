-- The health of a WebhookEndpoint, EventSubscription or EventType, for Argo CD.
-- A receiver that is down fails no rollout: that is the condition Delivering, and shows in the message. What is suspended or
-- disabled does neither: at Argo CD's own Suspended a sync with waves or hooks would wait for ever.
local hs = { status = "Progressing", message = "Tidings has not looked at it yet" }
local status = obj.status or {}
if (status.observedGeneration or -1) < (obj.metadata.generation or 0) then
  return hs
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local function is(kind, wanted)
  return conditions[kind] ~= nil and conditions[kind].status == wanted
end
local function said(kind)
  return conditions[kind].reason .. ": " .. (conditions[kind].message or "")
end

if is("Stalled", "True") then
  -- Nothing changes until somebody edits something.
  return { status = "Degraded", message = said("Stalled") }
end
if not is("Ready", "True") then
  if conditions.Ready ~= nil then
    hs.message = said("Ready")
  end
  return hs
end
if obj.spec ~= nil and obj.spec.suspend then
  return { status = "Healthy", message = "Suspended: messages wait and use up no attempt" }
end
if is("Delivering", "False") and conditions.Delivering.reason == "Disabled" then
  -- It waits for somebody: the action enable.
  return { status = "Healthy", message = said("Delivering") }
end
hs = { status = "Healthy", message = said("Ready") }
for _, trouble in ipairs({ { "Delivering", "False" }, { "KeysBlocked", "True" }, { "FilterFailing", "True" }, { "Unconsumed", "True" } }) do
  if is(trouble[1], trouble[2]) then
    hs.message = said(trouble[1])
  end
end
return hs
