//! Fan-out/fan-in on RabbitMQ: invoke many services in the background with one call, and be called once when all are done.
