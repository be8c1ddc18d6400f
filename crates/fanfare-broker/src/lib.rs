//! What Fanfare needs of a message broker, on RabbitMQ and in memory.
