"""MQTT 3.1.1 and 5.0 on the wire: packets as frozen values, topics and filters, reason codes. No I/O, no clock.

reader      bytes as they arrive -> whole packets, sizes capped before memory is taken
connect     CONNECT and CONNACK
publish     the head of a PUBLISH: topic, QoS, packet identifier, alias
subscribe   SUBSCRIBE, SUBACK, UNSUBSCRIBE
acks        PUBACK, PUBREC, DISCONNECT: the small ones that a gateway may have to write
topics      which strings are topic names and topic filters
properties  the property lists of 5.0
fields      integers, strings and lengths that the others are made of
codes       packet types and reason codes
"""
