"""A Fanfare publisher in Python with pika: the part of docs/protocol.md that a publisher needs, and nothing else.

    echo '{"source": "shop", "targets": {"price.quote": {"item": "shoe"}}, "on_final": ["order.enriched"]}' |
        python3 publisher.py amqp://guest:guest@localhost:5672/%2f fanfare

prints the CID and the run once the fan-out is accepted.
"""

import json
import sys
import time
import uuid
from datetime import datetime, timezone

import pika

TIME_LIMIT_SECONDS = 60
SEVEN_DAYS_MS = 7 * 24 * 60 * 60 * 1000


def fan_out(url, prefix, source, targets, on_final, on_target=(), metadata=None):
    cid, run = uuid.uuid4().hex, uuid.uuid4().hex
    now = datetime.now(timezone.utc)
    requested = now.strftime("%Y-%m-%d %H:%M:%S")
    aggregation = f"{prefix}.agg.{cid}.{run}"
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.confirm_delivery()  # from here on, a publish returns when it is confirmed and fails when it comes back

    def publish(queue, body, kind, message_id, headers, reply_to=None):
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            type=kind,
            correlation_id=cid,
            message_id=message_id,
            reply_to=reply_to,
            app_id=source,
            timestamp=int(now.timestamp()),
            headers={"fanfare-version": 1, "fanfare-run": run, **headers},
        )
        channel.basic_publish("", queue, json.dumps(body).encode(), properties, mandatory=True)

    for service in [*targets, *on_target, *on_final]:
        channel.queue_declare(f"{prefix}.service.{service}", passive=True)  # fails where nobody serves it
    internal = {"x-queue-type": "quorum", "x-delivery-limit": 2147483647}
    channel.queue_declare(f"{prefix}.fanin", durable=True, arguments=internal)
    single = {"x-queue-type": "classic", "x-single-active-consumer": True, "x-expires": SEVEN_DAYS_MS}
    channel.queue_declare(aggregation, durable=True, arguments=single)
    started = time.monotonic()
    try:
        for place, (service, payload) in enumerate(targets.items()):
            headers = {
                "fanfare-channel": "fanout-call",
                "fanfare-source": source,
                "fanfare-target": service,
                "fanfare-key": service,
                "fanfare-req-ts": requested,
            }
            if metadata:
                headers["fanfare-metadata"] = metadata
            queue = f"{prefix}.service.{service}"
            publish(queue, payload, "fanfare.request", f"{cid}/{place}", headers, aggregation)
        if time.monotonic() - started > TIME_LIMIT_SECONDS:
            raise TimeoutError("the requests took too long to be confirmed")
    except Exception:
        channel.queue_delete(aggregation)  # not accepted: no callback will come
        raise

    manifest = {
        "cid": cid,
        "run": run,
        "source": source,
        "req_ts_utc": requested,
        "channel": "fanout-call",
        "targets": [{"key": service, "service": service} for service in targets],
        "on_target": list(on_target),
        "on_final": list(on_final),
        "reply_to": aggregation,
    }
    if metadata:
        manifest["metadata"] = metadata
    # Now every request is safe. The fan-out exists when this is confirmed, and this is never written twice.
    publish(f"{prefix}.fanin", manifest, "fanfare.manifest", f"{cid}/manifest", {})
    return {"cid": cid, "run": run}


if __name__ == "__main__":
    print(json.dumps(fan_out(*sys.argv[1:3], **json.load(sys.stdin))))
