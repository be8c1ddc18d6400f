"""A Fanfare worker in Python with pika: the part of docs/protocol.md that a worker needs, and nothing else.

    python3 worker.py amqp://guest:guest@localhost:5672/%2f fanfare

serves `python.title` and `python.divide`, and the callback `python.log`, until it is ended.
"""

import json
import sys
import time
import traceback
import uuid
from datetime import datetime, timezone

import pika
from pika.exceptions import ChannelClosedByBroker, UnroutableError

INTERNAL = {"x-queue-type": "quorum", "x-delivery-limit": 2147483647}


def title(payload, _properties):
    return payload.title()


def divide(payload, _properties):
    return payload["dividend"] / payload["divisor"]


def log(payload, properties):
    print(json.dumps({"properties": vars(properties), "payload": payload}), flush=True)


SERVICES = {"python.title": title, "python.divide": divide, "python.log": log}


class Worker:
    def __init__(self, url, prefix):
        self.prefix = prefix
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.channel.basic_qos(prefetch_count=8)

    def run(self, services):
        service_queue = INTERNAL | {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"{self.prefix}.dead",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        self.channel.queue_declare(f"{self.prefix}.dead", durable=True, arguments=INTERNAL)
        self.channel.queue_declare(f"{self.prefix}.parked", durable=True, arguments=INTERNAL)
        for name, function in services.items():
            queue = f"{self.prefix}.service.{name}"
            self.channel.queue_declare(queue, durable=True, arguments=service_queue)
            self.channel.basic_consume(queue, self.handler(queue, name, function))
        self.channel.start_consuming()

    def handler(self, queue, name, function):
        def handle(channel, method, properties, body):
            read = None
            try:
                read = self.handle(queue, name, function, properties, body)
            except (KeyError, TypeError, ValueError) as error:
                self.park(queue, properties, body, f"malformed: {error!r}")
            channel.basic_ack(method.delivery_tag)  # only now: what follows from the message is safe
            if read:
                channel.queue_delete(read)  # and only after that: until then the message may come again

        return handle

    def handle(self, queue, name, function, properties, body):
        """Returns the queue whose parts nobody needs any more, where there is one."""
        headers, requested = properties.headers, now()
        is_target = headers["fanfare-channel"] in ("fanout-call", "parallel-exec-call")
        own = f"{self.prefix}.agg.{properties.correlation_id}.{headers['fanfare-run']}"
        if is_target and properties.reply_to != own:
            raise ValueError(f"reply_to {properties.reply_to} is not {own}")
        parts = None
        try:
            payload, parts = self.payload(properties, body)
            response, exception = function(payload, properties), None
        except Exception:  # whatever happens, there is a result
            response, exception = None, traceback.format_exc()
        if is_target:
            result = {
                "source": headers["fanfare-source"],
                "target": name,
                "response": response,
                "req_ts_utc": headers.get("fanfare-req-ts", requested),
                "resp_ts_utc": now(),
                "ok": exception is None,
                "exception": exception,
                "cid": properties.correlation_id,
            }
            self.answer(properties, result)
        elif exception:
            self.park(queue, properties, body, exception)
        return None if exception else parts

    def payload(self, properties, body):
        """The payload of a message, and the queue that its parts are in where it is too large for one message."""
        headers, payload = properties.headers, json.loads(body)
        if "fanfare-payload" not in headers:
            return payload, None
        queue = f"{self.prefix}.payload.{properties.correlation_id}.{headers['fanfare-run']}.{headers['fanfare-payload']}"
        payload["data"], number = {}, 0
        reader = self.connection.channel()  # when it is closed, the parts go back: another attempt reads them again
        while number < headers["fanfare-payload-parts"]:
            method, part, entries = reader.basic_get(queue)
            if method is None or part.headers["fanfare-payload-part"] > number:
                raise LookupError(f"part {number} is held by another, or gone")
            if part.headers["fanfare-payload-part"] == number:
                payload["data"].update(json.loads(entries))
                number += 1
        reader.close()
        return payload, queue

    def answer(self, request, result):
        copied = {name: request.headers[name] for name in ("fanfare-key", "fanfare-run") if name in request.headers}
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            correlation_id=request.correlation_id,
            message_id=f"{request.message_id}/result",
            type="fanfare.result",
            headers={"fanfare-version": 1, **copied},
        )
        body = json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode()
        while True:
            try:
                return self.channel.basic_publish("", request.reply_to, body, properties, mandatory=True)
            except UnroutableError:
                if self.is_gone(request.reply_to):
                    return None  # the fan-out has ended without this result

    def is_gone(self, queue):
        """Only the broker's word that there is no such queue, given twice, is proof."""
        for pause in (3, 0):
            probe = self.connection.channel()  # an error closes it
            try:
                probe.queue_declare(queue, passive=True)
                probe.close()
                return False
            except ChannelClosedByBroker as error:
                if error.reply_code != 404 or "no queue" not in error.reply_text:
                    return False
            time.sleep(pause)
        return True

    def park(self, queue, properties, body, reason):
        why = {
            "fanfare-reason": reason[:1000],
            "fanfare-parked-from": queue,
            "fanfare-parked-at": now(),
            "fanfare-parked-id": uuid.uuid4().hex,
        }
        properties.headers = (properties.headers or {}) | why
        properties.delivery_mode = 2
        self.channel.basic_publish("", f"{self.prefix}.parked", body, properties, mandatory=True)


def now():
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    Worker(*sys.argv[1:3]).run(SERVICES)
