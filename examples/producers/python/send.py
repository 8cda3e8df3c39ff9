"""Posts one event until Tidings has it, with the CloudEvents SDK for Python. Arguments, environment and exit codes are those
of ../curl/send.sh:

    python3 send.py lead.qualified /agents/voice lead-2041 <data.json
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cloudevents.core.bindings.http import to_binary_event
from cloudevents.core.v1.event import CloudEvent

URL = f"{os.environ['TIDINGS_URL']}/v1/namespaces/{os.environ['NAMESPACE']}/events"
TOKEN_FILE = Path(os.environ.get("TOKEN_FILE", "/var/run/secrets/tidings/token"))
GIVE_UP_AFTER = float(os.environ.get("GIVE_UP_AFTER", "300"))


def post(event: CloudEvent) -> tuple[int, str | None, str]:
    """Status (0: no answer), Retry-After and body."""
    message = to_binary_event(event)
    # The token is read each time: the kubelet renews it.
    headers = {**message.headers, "authorization": f"Bearer {TOKEN_FILE.read_text().strip()}"}
    request = urllib.request.Request(URL, data=message.body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, None, response.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.headers["retry-after"], refusal.read().decode()
    except OSError as error:
        return 0, None, str(error)


def again(status: int) -> bool:
    """Whether the same event can be accepted in time: its id makes that safe. 401: the file has a newer token then."""
    return status in (0, 401, 408, 429) or status >= 500


def send(event: CloudEvent) -> None:
    backoff, give_up = 1, time.monotonic() + GIVE_UP_AFTER
    while True:
        status, retry_after, body = post(event)
        if 200 <= status < 300:
            print(body)
            return
        if not again(status):
            print(f"refused: {status} {body}", file=sys.stderr)
            sys.exit(1)
        after = int(retry_after) if retry_after and retry_after.isdecimal() else backoff
        if time.monotonic() + after >= give_up:
            print(f"given up: {status}", file=sys.stderr)
            sys.exit(75)
        print(f"not yet: {status}, again in {after} s", file=sys.stderr)
        time.sleep(after)
        backoff = min(backoff * 2, 30)


if __name__ == "__main__":
    event_type, source, event_id = sys.argv[1:]
    attributes = {
        "specversion": "1.0",
        "type": event_type,
        "source": source,
        "id": event_id,
        "datacontenttype": "application/json",
    }
    send(CloudEvent(attributes, json.load(sys.stdin)))
