"""A producer as Knative's SinkBinding makes one, in Python's standard library: it knows its sink by K_SINK alone. Arguments and
exit codes are those of ../curl/send.sh:

    python3 send.py lead.qualified /agents/voice lead-2041 <data.json

Knative gives it K_SINK (the whole URL), K_CE_OVERRIDES (extensions to add), K_CA_CERTS (PEM, with an HTTPS sink) and, with the
feature authentication-oidc, a token in /oidc/token; TOKEN_FILE names another file.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

SINK = os.environ["K_SINK"]
TOKEN_FILE = Path(os.environ.get("TOKEN_FILE", "/oidc/token"))
GIVE_UP_AFTER = float(os.environ.get("GIVE_UP_AFTER", "300"))
EXTENSIONS = json.loads(os.environ.get("K_CE_OVERRIDES") or "{}").get("extensions", {})
# What stands for itself in a header (CloudEvents 1.0.2, HTTP binding, 3.1.3.2).
PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
# Without K_CA_CERTS the system's roots are trusted.
TLS = ssl.create_default_context(cadata=os.environ.get("K_CA_CERTS") or None)


def post(headers: dict[str, str], data: bytes) -> tuple[int, str | None, str]:
    """Status (0: no answer), Retry-After and body."""
    # The token is read each time: Knative renews it.
    token = {"authorization": f"Bearer {TOKEN_FILE.read_text().strip()}"}
    request = urllib.request.Request(SINK, data=data, headers=headers | token, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30, context=TLS) as response:
            return response.status, None, response.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.headers["retry-after"], refusal.read().decode()
    except OSError as error:
        return 0, None, str(error)


def send(headers: dict[str, str], data: bytes) -> None:
    backoff, give_up = 1, time.monotonic() + GIVE_UP_AFTER
    while True:
        status, retry_after, body = post(headers, data)
        if 200 <= status < 300:
            print(body)
            return
        # In time the same event can be accepted: its id makes that safe. 401: the file has a newer token then.
        if status not in (0, 401, 408, 429) and status < 500:
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
    attributes = {"specversion": "1.0", "type": event_type, "source": source, "id": event_id}
    headers = {f"ce-{name}": urllib.parse.quote(value, PRINTABLE) for name, value in (attributes | EXTENSIONS).items()}
    send(headers | {"content-type": "application/json"}, sys.stdin.buffer.read())
