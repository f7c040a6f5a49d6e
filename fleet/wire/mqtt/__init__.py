"""MQTT 3.1.1 and 5.0 codec: packets as frozen values, topics and filters, reason codes. No I/O, no clock.

reader      byte stream -> packets, with a size limit that is checked before memory is allocated
connect     CONNECT and CONNACK
publish     PUBLISH
subscribe   SUBSCRIBE, SUBACK, UNSUBSCRIBE
acks        PUBACK, PUBREC, PUBREL, PUBCOMP, DISCONNECT
topics      validation of topic names and topic filters
properties  the property lists of 5.0
fields      integers, strings and lengths
codes       packet types and reason codes
"""
