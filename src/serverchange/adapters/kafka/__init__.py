"""Kafka: one connection configuration, one producer factory, one consumer factory, topics, publishing."""
