"""Error codes: the one table of every stable code, with its HTTP status, meaning and advice.

    ERROR_CODES["token-expired"].meaning

A code is part of the API: it never changes and has one meaning. `python -m fleet.domain.error_codes` prints the page
fleet/ERRORS.md; a test keeps the two equal, and proves that no other code is raised.
"""

import sys

from fleet.domain.errors_page import error_code, errors_page

# One code a line: code | HTTP statuses, by operation | meaning | advice
TABLE = """\
## Requests
bad-answer | 503 | The server's response is not one of the admin API. | Check the address.
bad-authorization | 401 | The Authorization header is not HTTP Basic with UTF-8 text. | Send `Basic base64(name:secret)`.
bad-content-type | 415 | The body has another media type than the route accepts. | Set Content-Type as documented for the route.
bad-cursor | 400 | The cursor belongs to another query, or is malformed. | Start again without a cursor.
bad-etag | 400 | An ETag is not a text in double quotes. | Send it as it was received.
bad-http | 400 | The bytes are not a valid HTTP request. | Check the client; its framing is broken.
headers-too-large | 431 | The request's headers are too long, or too many. | Send fewer and shorter ones.
bad-idempotency-key | 400 | The Idempotency-Key is not 1 to 128 printable ASCII characters without spaces. | Generate a UUID for each request.
bad-json | 400 | The body is not strict JSON: syntax, a duplicate member, depth, or a number out of range. | Correct the body.
bad-last-event-id | 400 | Last-Event-ID is not the sequence number of an event. | Send the id of the last event received.
bad-method | 405 | The path does not support this method. | See the Allow header.
bad-output | 400 | The output file holds something else. | Name another file.
bad-place | 400 | The position does not belong to this listing. | Start from the beginning.
bad-request | 400 | A parameter or member is missing, unknown or invalid. | The message names it; see /v1/openapi.json.
bad-url | 400 | The text is not a valid https URL. | Write https://HOST:PORT, without path, query or user.
bad-value | 400 | A value cannot be stored in the registry. | Remove NUL and other unsupported characters.
broker-unreachable | 503 | The broker cannot be reached, or has not acknowledged a message of the fleet. | Try again.
broker-refused | 503 | The broker refused a command of its administrator. | Look at the broker's log.
broker-silent | 503 | The MQTT broker does not answer. | Look at the broker and its log.
busy | 503 | Concurrent changes of the same object kept colliding; nothing was done. | Retry after Retry-After.
cannot-reach | 503 | The server cannot be reached, or its certificate does not verify. | Check the address, the server, and --ca.
changed-meanwhile | 409 412 | The object was changed since it was read. | Read it again and retry.
content-encoding | 415 | The body is compressed. | Send it without Content-Encoding.
count-differs | 409 | The number of matching devices is not the one confirmed; nothing was changed. | Run the dry run again.
count-needed | 400 | A bulk operation must be confirmed with the number of devices. | Send `expected` from the dry run.
draining | 503 | The server is about to stop. | Use another node, or retry later.
feed-gap | 410 503 | Events after this position have been deleted. | Read the state again and follow from the newest event.
gone | 400 | The client closed the connection before the response. | Retry.
idempotency-key-reused | 422 | The Idempotency-Key was used for another request. | Use a new key for each request.
idempotency-key-used | 409 | Another request with this Idempotency-Key was answered meanwhile. | Send the same request again to get that answer.
if-match-needed | 428 | The change requires If-Match. | Send the ETag read, or `*`.
internal | 500 | The server failed; the error is in its log. | Report it with the log lines.
malformed | 400 | The bytes are not the format expected: base64, DER, a length or UTF-8 is invalid. | Correct the encoding.
no-such-path | 404 | There is no resource at this path. | See /v1/openapi.json.
not-acceptable | 406 | The route cannot respond with an accepted media type. | Change the Accept header.
not-served | 501 | The EST operation is not implemented. | See the EST page for the operations served.
too-large | 413 | The body or message exceeds its size limit. | Send less.
too-many-connections | 503 | The publish listener has no room for another connection. | Retry after Retry-After.
too-many-requests | 429 | The rate limit of the address or credential is exceeded. | Retry after Retry-After.
too-many-streams | 429 | The operator has too many event streams open. | Close one.
too-slow | 408 | The request did not arrive in time. | Retry on a better connection.
uri-too-long | 414 | The request line is too long. | Send a shorter path and query.
unsupported | 400 | A version, type or option is not supported. | Use a documented one.
## Enrollment and authentication
already-enrolled | 403 | The device holds a valid certificate. | Renew it with simplereenroll, or use a token for this device to enroll a new key.
approval-pending | 202 | The request waits for an operator's approval. | Send the same request again after Retry-After.
bad-client-certificate | 403 | The certificate that a reverse proxy or a broker forwarded cannot be read. | Configure the proxy as described in fleet/servers/forward_auth, the broker as in fleet/servers/broker_auth.
bad-csr | 400 | `csr` is not a certificate request in PEM. | Create one with openssl req.
bad-idevid | 400 | The manufacturer's certificate has no usable serial number, or is malformed. | Check the IDevID.
bad-proxy-secret | 403 | The request does not carry the secret of the reverse proxy. | Set X-Proxy-Secret in the proxy to what the secret file holds.
bad-signature | 400 | The request's own signature does not verify. | Sign the CSR with the key it contains.
bad-target | 403 | The method or the path of an HTTP request is missing, malformed or ambiguous. | Send a plain path: no dot segments, empty segments, semicolons or encoded delimiters.
bad-token | 401 | The token is not valid. | Check it, or create a new one: fleet token create.
binding-missing | 400 | The model requires a channel binding in the CSR (RFC 7030, 3.5). | Add the challengePassword.
certificate-ended | 403 | The certificate was revoked or superseded during the connection. | Use the newest certificate.
certificate-expired | 403 | The certificate is not within its validity period. | Renew it in its grace period, or enroll again.
certificate-revoked | 403 409 | The certificate is revoked. | Nothing can undo it; a device that may enroll again needs a new key.
certificate-distrusted | 403 | A distrust covers the certificate: its model, CA, key type or time of issue. | Renew it by simplereenroll, unless that is refused too; see fleet distrust list.
certificate-superseded | 403 | A newer certificate of the device has been used. | Use the newest certificate.
certificate-unknown | 401 | The certificate is not in the registry. | Enroll first.
claim-expired | 403 | The claim has expired. | Use a device-specific token, or a new claim.
claim-only-enrolls | 403 | A claim certificate authorizes first enrollments only. | Use the device's own certificate.
claim-quarantined | 403 | The claim is in quarantine. | An operator releases it: fleet claim release.
claim-revoked | 403 | The claim is revoked. | Use another way to enroll.
claim-used-up | 403 | The claim's quota is used up. | Create a new claim.
client-id-mismatch | 403 | The MQTT client id is not the device id. | Set the client id to the device id.
device-barred | 403 | The device was revoked after the backup from which the registry was restored. | Enroll under a new id.
device-registered | 403 409 | The device has no certificate yet. | Enroll it first.
device-retired | 403 409 | The device is retired. | Register the hardware under a new id.
device-revoked | 403 409 | The device is revoked. | Register the hardware under a new id.
device-suspended | 403 409 | The device is suspended. | An operator resumes it: fleet device resume.
http-not-allowed | 403 | The model's rules for HTTP do not allow the method and path. | Change the rules: fleet model set --http-allow.
idevid-ambiguous | 403 | The IDevID matches several devices of the manifest. | Enroll under the model's EST label, or correct the manifest.
idevid-bound | 403 | The IDevID has enrolled another device. | An operator checks which device is genuine.
idevid-of-another | 403 | The device has enrolled with another IDevID. | An operator checks which device is genuine.
idevid-only-enrolls | 403 | An IDevID authorizes a certificate for its own key only. | Send a CSR with the IDevID's key.
key-in-use | 403 | The key belongs to another holder, or to a CA or the server of the fleet. | Generate a new key.
key-not-allowed | 400 | The model does not allow this type of key. | Use one of the model's key types.
key-not-new | 403 | The model requires a new key for a renewal. | Generate a new key.
key-not-same | 403 | The model requires the same key for a renewal. | Keep the key.
key-revoked | 403 | The key belongs to a revoked certificate. | Generate a new key.
keygen-not-open | 403 | The model does not allow server-side key generation. | Generate the key on the device.
model-not-named | 403 | The trust anchor covers several models and the device is new. | Enroll under the model's EST label.
name-impossible | 403 | The id or model does not fit the model's name template, or the CA's name constraints forbid a name. | Choose another id, or change the template.
names-changed | 403 | Subject and SAN differ from the current certificate (RFC 7030, 4.2.2). | Copy them from it.
no-certificate | 401 | A client certificate is required. | Connect with one.
no-common-name | 400 | The CSR's subject does not have exactly one common name. | Set CN to the device id.
no-credentials | 401 | Neither a token nor an enrolling certificate was presented. | Send a token, or connect with a certificate.
not-a-device | 403 | Only a device's certificate is admitted here. | Use a device's certificate.
not-for-you | 403 | This kind of certificate has no access to the path. | Use an operator's certificate.
not-on-manifest | 403 | The IDevID's serial number is not on the manifest. | Import the device: fleet device import.
not-this-connection | 400 | The channel binding is of another TLS connection (RFC 7030, 3.5). | Compute it for each connection.
not-this-hardware | 403 | The device is registered with another hardware serial. | Check the id and the serial number.
not-your-identity | 403 | The credentials are for another device or key. | Check the common name of the CSR.
not-your-key | 403 | The manifest lists another key for the device. | Use the listed key.
not-your-model | 403 | The credentials are for another model. | Check the model and the EST label.
other-tenant | 403 | The certificate was issued by another tenant's CA. | Use a certificate of the model's tenant.
path-not-open | 403 | The model does not allow this way of enrolling. | See the model's admission paths: fleet model show.
repeated-header | 403 | A header that the reverse proxy sets is there twice: one may be the client's own. | Let the proxy replace it.
request-denied | 403 409 | An operator denied the request. | Ask the operator; a new key makes a new request.
request-used-up | 403 | The approved request's certificate has been issued, and cannot be given again. | Renew it with simplereenroll, or use a token for this device to enroll a new key.
key-too-short | 400 | libest cannot read a generated key other than an RSA one. | Send a CSR with an RSA key.
sealing-impossible | 400 | The generated key cannot be encrypted as requested. | See the message for the algorithms supported.
certificate-budget | 429 | The device has been issued as many certificates as its model allows in a day, or in a lifetime if that is shorter. | Retry after Retry-After; find out why it asks so often.
station-quota | 429 | The station has used its certificates of the day (UTC). | Retry tomorrow, or raise the quota.
token-expired | 403 | The token has expired. | Create a new one: fleet token create.
token-revoked | 403 | The token is revoked. | Create a new one: fleet token create.
token-used-up | 403 | The token has no use left. | Create a new one: fleet token create.
unknown-device | 403 | The device is not in the registry. | Register it: fleet device add.
usage-not-allowed | 400 | The CSR requests an extended key usage that the model does not grant. | Request fewer.
use-reenroll | 403 | A device renews its certificate with simplereenroll. | Use that operation.
weak-key | 400 | The key is too short, or of an unsafe kind. | Generate a stronger key.
webhook-denied | 403 | The model's external authorization service denied the device. | Ask its operator.
webhook-failed | 503 | The model's external authorization service gave no valid response. | Retry; check the webhook.
will-qos | 403 | The model does not allow the will's QoS. | Change the will or the model.
will-refused | 403 | The model does not allow the will's topic. | Change the will or the model.
will-response | 403 | The model does not allow a response on the will's Response Topic. | Change the will or the model.
will-retain | 403 | The model does not allow a retained will. | Change the will or the model.
topic-not-allowed | 403 | The model does not allow the device to publish or subscribe to the topic. | Change the client or the model.
resource-not-allowed | 403 | A device asks its broker for something other than the exchange of MQTT and its own queues. | Connect with MQTT; for another virtual host set rabbitmq_vhost.
password-login | 403 | The client of a broker that asks us sent a user name and a password. | Let the device connect without them.
ambiguous-name | 403 | A station, claim or operator has a certificate of the device's name, and the broker says the name alone. | Wait until that certificate has expired, or rename the device.
## Objects of the registry
anchor-exists | 409 | The trust anchor's name or certificate exists already. | Choose another name.
application-model | 403 | The model is of applications: no station, claim, manufacturer's CA, manifest or factory operator vouches for those. | Make a token, or let an operator approve.
archive-in-use | 409 | Another retention run is using the archive. | Wait until it has finished.
bad-anchor | 400 | The certificate cannot be a trust anchor. | The message names the reason.
bad-distrust | 400 | The distrust names nothing, or its times are not in order. | The message names the reason.
distrust-exists | 409 | The distrust's id is taken. | Retry.
bad-anchor-models | 400 | A trust anchor needs 1 to 64 models. | Name them with --model.
bad-bulk | 400 | Members of the bulk operation do not go together. | See /v1/openapi.json.
bad-device-id | 400 | The text is not a device id. | Use 1 to 64 of letters, digits and . _ : - , beginning with a letter or digit.
bad-filter | 400 | The device filter is malformed. | The message names the position.
bad-hardware-serial | 400 403 | The hardware serial has characters that a certificate cannot hold. | Use PrintableString characters.
bad-key-hash | 400 | The key hash is not 64 hex digits. | Compute SHA-256 of the DER SubjectPublicKeyInfo.
bad-key-type | 400 | The key type is unknown. | Use a documented key type.
bad-lifetime | 400 | The lifetime is out of range. | Choose from one minute to 3650 days.
bad-manifest | 400 | The manifest file cannot be read. | The message names the line.
bad-name | 400 | The text is not a valid name. | Use 1 to 64 of letters, digits and . _ - , beginning with a letter or digit.
bad-operator-models | 400 | The operator's models are invalid for its role. | See fleet operator add --help.
bad-quota | 400 | The quota is out of range. | The message names the range.
bad-reason | 400 | The reason is not one line of printable characters. | Shorten it.
bad-row | 400 | A row of the manifest is invalid. | The message names the column.
bad-rule | 400 | A model's rule has an invalid name or value. | See fleet model set --help.
bad-station-models | 400 | A station needs 1 to 64 models. | Name them with --model.
bad-tag | 400 | The text is not a valid tag. | Write KEY=VALUE.
bad-time | 400 | The text is not a time. | Write 30d, 2026-12-01 or an RFC 3339 time.
bad-token-scope | 400 | A token is for exactly one of a device and a model. | Name one of them.
bad-token-ttl | 400 | The token's lifetime is out of range. | The message names the range.
bad-token-uses | 400 | The token's number of uses is out of range. | The message names the range.
bad-topic | 400 | The text is not a topic, or to subscribe not a topic filter, of MQTT. | Correct it.
bad-topic-filter | 400 | The text is not an MQTT topic filter for a policy. | See MQTT 5.0, 4.7.
claim-exists | 409 | The claim exists already. | Choose another name.
claim-gone | 409 | The claim does not exist, or is revoked. | See fleet claim list.
claim-not-open | 409 | The claim is revoked or in quarantine. | See fleet claim show.
claim-not-quarantined | 409 | The claim is not in quarantine. | See fleet claim show.
claim-spent | 409 | The claim is revoked or in quarantine, or has no use left. | See fleet claim show.
credential-ended | 409 | The certificate was revoked or superseded meanwhile. | Use the newest certificate.
credential-exists | 409 | The certificate or its serial number is in the registry already. | Retry.
crls-busy | 503 | Another node is publishing CRLs. | Try again.
credential-kept | 409 | The certificate has not expired and is kept. | Retry when it has expired.
device-exists | 409 | The device exists already. | See fleet device show.
device-not-suspended | 409 | The device is not suspended. | See fleet device show.
held-to-models | 403 | The operator is restricted to models, and the request is outside them. | Ask an unrestricted operator.
key-taken | 409 | The key belongs to another holder, or was revoked. | Generate a new key; of a manifest, correct the row.
lease-held | 409 | Another node holds the lease. | Wait until it expires.
model-has-devices | 409 | A model that has devices cannot become one of services. | Add another model.
model-kind-fixed | 409 | A model of devices cannot become one of applications, nor the other way round. | Add another model.
model-exists | 409 | The model exists already. | Change it with fleet model set.
more-than-yours | 403 | The role has permissions that the operator's own lacks. | Ask an admin.
name-is-device | 400 | The NAME of a message is the id of a device: NAME was left out. | Give NAME behind the ids.
name-not-in-request | 400 | The CSR's subject is not the name requested. | Set CN to the name.
name-taken | 409 | The name is used by another kind of object. | Choose another name.
node-silent | 409 503 | The node where the device is connected, which has a broker of its own, does not answer. | Try again when it does.
no-broker | 409 | The API has no broker to publish at. | Ask the API of a fleet that is served.
no-proof | 400 | The manifest row has neither a hardware serial nor a key hash. | Add one of them.
agent-refused | 409 | The device's agent has not carried out the command; its answer says why. | Do what it says.
no-agent | 409 | No agent of the device takes the fleet's commands: it is offline, or not managed. | Ask when it is connected; see fleet device report --last.
no-answer | 503 | The device's agent has not answered in time. | Try again, or look at its last report.
no-report | 404 | The device's agent has sent no report yet. | Ask for one: fleet device report.
no-such-authority | 404 | The CA does not exist, or does not issue. | See fleet ca show.
no-such-distrust | 404 409 | The distrust does not exist, or was undone. | See fleet distrust list.
no-such-anchor | 404 | The trust anchor does not exist. | See fleet anchor list.
no-such-claim | 404 | The claim does not exist. | See fleet claim list.
no-such-crl | 404 | There is no such CRL. | See the list: fleet crl list.
no-such-credential | 404 | The certificate is not in the registry. | Check the serial number.
no-such-device | 404 409 | The device does not exist, or is outside the operator's models. | See fleet device list.
no-such-model | 400 403 404 409 | The model does not exist, or is outside the operator's models. | See fleet model list.
no-such-operator | 404 | The operator does not exist. | See fleet operator list.
no-such-override | 404 | The model has no override for the tag. | See fleet model show.
no-such-request | 404 | The request does not exist, or has expired. | See fleet request list.
no-such-session | 404 | No session of the device with this client id is known. | See fleet session show.
no-such-station | 404 409 | The station does not exist. | See fleet station list.
no-such-token | 404 | The token does not exist. | See fleet token list.
nothing-to-tag | 400 | No tag and no group is named. | Name one.
operator-exists | 409 | The operator exists already. | Choose another name.
operator-revoked | 409 | The operator has no certificate left to revoke. | See fleet operator list.
other-request-approved | 409 | Another request for the device id is approved. | Deny it first.
payload-too-large | 400 | A message of the fleet has more than 65536 bytes. | Send less.
publish-refused | 503 | A message is refused: of the fleet by the broker, or of a device by its model. | Let its user _publisher write to the topic.
publisher-busy | 503 | Too many messages of the fleet wait for the broker. | Try again.
request-approved | 409 | The request is approved already. | See fleet request show.
request-issued | 409 | The request's certificate has been issued. | Revoke the device instead.
request-moved | 409 | The request was decided meanwhile. | Read it again.
request-not-added | 409 | The queue of requests is full, or the request exists. | Retry later.
reserved-topic | 400 | A model's filter to publish matches topics alone to which the fleet alone publishes. | Choose another, such as devices/{id}/up/#.
role-not-enough | 403 | The operator's role lacks the permission. | Ask an operator who has it.
row-differs | 409 | The device was imported with other values. | Correct the row, or change the device.
serial-taken | 409 | The hardware serial belongs to another device of the model. | Check the manifest.
station-exists | 409 | The station exists already. | Choose another name.
station-revoked | 409 | The station has no certificate left to revoke. | See fleet station list.
station-spent | 409 | The station's quota of the day is used up. | Retry tomorrow, or raise the quota.
tag-twice | 400 | A tag is given twice, or both set and removed. | Give it once.
tagged-already | 409 | The device has these tags and groups already. | Nothing to do.
token-exists | 409 | The token exists already. | Retry.
token-gone | 409 | The token does not exist, or is revoked. | See fleet token list.
token-spent | 409 | The token is revoked, or has no use left. | Create a new one: fleet token create.
too-many-distrusts | 400 | The number of distrusts is at its limit. | Undo one.
too-many-anchors | 400 | The number of trust anchors is at its limit. | Remove one.
too-many-filters | 400 | The model has too many topic filters. | Use wildcards.
too-many-groups | 400 | The device is in too many groups. | Leave one.
too-many-tags | 400 | The device has too many tags. | Remove one.
## Audit
archive-damaged | 400 | An archive file is damaged. | Restore it from a copy.
archived-meanwhile | 503 | Rows were archived during the verification. | Run it again.
audit-archived | 400 | The rows to verify have been archived. | Verify the archive: fleet retention check.
audit-changed | 400 | A row was changed after it was written. | Investigate; restore the registry from a backup.
audit-frontier | 400 | The stored tree frontier was tampered with. | Investigate; restore the registry from a backup.
audit-hash-missing | 400 | A stored hash or row is missing. | Investigate; restore the registry from a backup.
audit-hashes-missing | 503 | The registry lacks hashes needed for an archive. | Run fleet audit verify.
audit-head-changed | 400 | A signed tree head was changed. | Investigate; restore the registry from a backup.
bad-audit-note | 400 | The home's note of its audit is damaged. | Find out who changed it.
audit-head-removed | 400 | A signed tree head was removed. | Investigate; restore the registry from a backup.
audit-inserted | 400 | A row was inserted later. | Investigate; restore the registry from a backup.
audit-kept | 409 | The rows are not all sealed, or not whole blocks, and are kept. | Seal the audit first.
audit-key-lost | 403 | The key that signs tree heads is missing. | Restore ca/audit.key from a backup.
operators-ca-lost | 403 | The certificate of the operators' CA is missing; its key is there. | Restore ca/operators.pem from a backup.
audit-moved | 400 | A row is out of place. | Investigate; restore the registry from a backup.
audit-node | 400 | A stored inner node was tampered with. | Investigate; restore the registry from a backup.
audit-removed | 400 | Rows were removed. | Investigate; restore the registry from a backup.
audit-rewritten | 400 | Rows do not match a signed or recorded tree head. | Investigate; restore the registry from a backup.
bad-proof | 400 | The file is not an inclusion proof. | Create one: fleet audit prove.
bad-state | 400 | The state file was not written by fleet audit verify. | Name another file.
head-key | 400 | A tree head is signed by an unknown key. | Check the public key given.
head-signature | 400 | The signature of a tree head does not verify. | Investigate; check the public key given.
no-such-certificate | 404 | The certificate is not in the registry, or is not usable. | Check the serial number.
no-such-row | 404 | The audit row does not exist. | See fleet audit list.
not-sealed | 503 | The row is not sealed yet. | Retry in a second, or run fleet audit seal.
proof-wrong | 400 | The inclusion proof does not verify. | Do not trust the row.
row-archived | 404 | The row has been archived. | Look in the archive.
sealed-already | 409 | Another process has sealed these rows. | Nothing to do.
## Home, database, backup and CAs
against-the-rules | 409 | A constraint of the database rejects the change. | Report it with the log lines.
backup-damaged | 400 | The backup is damaged. | Use another copy.
backup-newer | 400 | The backup was written by a later version. | Upgrade first.
backup-not-sealed | 403 | A passphrase was given for a backup that is not encrypted: it may be forged. | Check the file's origin.
bad-certificate | 400 | The certificate, its key or the root CA cannot be used. | Give PEM files, and a key without a password.
bad-database | 400 | The database setting is invalid. | See fleet init --help.
bad-host | 400 | A host of the server certificate is invalid. | Give DNS names and IP addresses.
bad-issuer | 400 | The issuing CA's certificate cannot sign. | Roll the CA over: fleet ca rollover.
bad-chain | 400 | The chain of an issuing CA that was signed elsewhere cannot be used. | The message says why; have the request signed again.
bad-ca-certificate | 400 | It is not a certificate that this root can sign or revoke. | The message says why.
bad-certificate-file | 400 | A certificate file of the home cannot be used. | The message names the file; put it back from a backup.
bad-key | 400 | A key file cannot be used. | The message names the file and the reason.
bad-server-key | 400 | server/server.key is not the key of the server's certificate. | Put the pair there.
bad-server-chain | 400 | No client could verify the server's certificate chain. | Put the CAs above the certificate into server/server.pem.
bad-password-file | 400 | The password file cannot be read, or other users can read it. | chmod 600 it.
bad-secret-file | 400 | The file with the secret of the reverse proxy cannot be used. | The message says why.
bad-settings | 400 | fleet.toml cannot be used. | The message names the line.
bad-webhook-ca | 400 | The webhook CA file cannot be read. | Give a file in PEM, DER or PKCS#7.
ca-busy | 503 | The CAs are being changed. | Retry.
ca-cannot-sign | 503 | The tenant's CA cannot sign here. | See the log.
ca-in-use | 403 | A valid certificate of the former CA is in use. | Wait, or renew its devices first.
cannot-listen | 503 | A listener cannot bind its address. | Free it, or choose another.
copy-failed | 503 | The registry's copy could not be written or read. | Check the disk.
database-file-exposed | 400 | The file with the database URL is readable by other users. | chmod 600 it.
database-in-environment | 403 | FLEET_DATABASE would override the restored home's database. | Unset it.
database-login | 503 | The database refuses the login. | Check user and password.
event-marks-damaged | 400 | The file of event times is damaged. | Remove it; retention starts counting anew.
file-exists | 409 | The output file exists; nothing was changed. | Choose another name.
file-too-large | 400 | A file of the home is too large for a backup. | Move it out of the home.
home-changed | 400 | A file changed while it was read for the backup. | Run the backup again.
home-exists | 409 | The folder exists and is not empty. | Choose another path.
home-exposed | 403 | The home, or a folder in it, can be changed by other users. | Make this user its owner, and remove the write permission of others.
home-in-use | 409 | Another process serves the home. | Stop it first.
issuer-expired | 400 403 | The issuing CA has expired. | Roll the CA over: fleet ca rollover.
key-exists | 409 | The key file exists and is never overwritten. | Move it away first.
key-exposed | 400 | The key file is readable by other users. | chmod 600 it.
no-database | 404 | The database does not exist. | Create it, or check the URL.
no-database-file | 404 | The file with the database URL cannot be read. | Check its path.
no-home | 404 | The path is not a home. | Create one: fleet init.
no-mosquitto | 400 | mosquitto is not installed. | Install it, or choose another broker.
no-registry | 404 | The registry does not exist. | Check the path or URL, or restore a backup: fleet restore.
no-such-group | 400 | The group of a Unix socket does not exist on this machine. | Name another in fleet.toml.
no-ca-request | 404 | There is no request for an issuing CA that the chain could answer. | Make one: fleet ca csr.
no-such-ca | 404 | The former CA does not exist. | See fleet ca show.
no-such-tenant | 403 404 | The tenant has no CA here. | See fleet tenant list.
not-a-backup | 400 | The file is not a backup, or its beginning is damaged. | Name another file.
not-a-registry | 400 | The database holds something else. | Check the path or URL.
not-durable | 400 | durable = true needs our own mosquitto. | Install it, or set durable = false.
not-its-root | 400 | The tenant has no root CA of its own. | Roll over the fleet's: fleet ca rollover --root.
operators-ca-away | 503 | The key of the operators' CA is not on this server. | Add the operator at the home that holds it, with --home.
other-version | 503 | The installed version's worker processes cannot be supervised by the server that is running. | Restart fleet serve.
part-ended | 503 | A permanent task of the server ended. | See the log.
passphrase-needed | 400 | The backup is encrypted. | Give its passphrase.
postgres-encoding | 400 | The database's encoding cannot hold every name. | Use UTF8.
postgres-too-old | 400 | PostgreSQL is older than 15. | Upgrade it.
registry-busy | 503 | Another program holds a lock in the database. | Retry, or end that program.
registry-closed | 503 | The registry has been closed. | Retry.
registry-differs | 400 | The two engines have different tables. | Migrate the registry first.
registry-exists | 409 | A registry exists already; nothing was changed. | Choose another database.
registry-newer | 400 | The registry has a later schema. | Upgrade the program.
registry-permissions | 400 | The database user may not create or change the registry. | Grant it the schema.
registry-unavailable | 503 | The registry cannot be reached, or its disk failed; nothing was changed. | Retry; check the database.
registry-unsettled | 503 | The database failed during a commit: the outcome is unknown. | Read the object, then retry.
registry-went-back | 403 | The registry is older than its revocation journal. | Restore it with fleet restore.
retention-elsewhere | 409 | Another node archives for this fleet. | Wait, or take over with --take-over.
revocation-log-damaged | 400 | The revocation journal is damaged. | Restore it from a copy.
revocation-log-gone | 503 | The revocation journal was removed while in use. | Restore it from a copy.
revocation-log-lost | 403 | The revocation journal is lost; the registry may be older. | Put it back; or see fleet db begin-journal.
revocations-incomplete | 403 | The revocation journal does not cover the time since the backup. | Use a newer backup or journal.
revocations-of-another | 403 | The revocation journal is of another fleet. | Name the right file.
root-key-away | 403 | The root CA's key is not here. | Put it in place for this command.
sqlite-too-old | 503 | SQLite is older than 3.37. | Upgrade Python or SQLite.
tenant-damaged | 400 503 | The tenant's CA cannot be read. | Complete its folder.
tenant-exists | 409 | The tenant exists already; nothing was changed. | Choose another name.
too-few-descriptors | 503 | The limit of open files leaves too few for connections. | Raise it: ulimit -n, or LimitNOFILE of the unit.
too-many-former | 400 | There are too many former issuing CAs. | Remove one: fleet ca forget.
too-many-tenants | 400 | The number of tenants is at its limit. | Use another fleet.
worker-died | 503 | A worker exited before it listened. | See the log.
worker-not-ready | 503 | A worker did not listen in time. | Check the load of the machine.
wrong-issuer | 403 | The CA does not issue for this holder. | Report it with the log lines.
wrong-passphrase | 403 | The passphrase is wrong, or the backup's beginning is damaged. | Try another.
"""

CODES = tuple(error_code(line) for line in TABLE.splitlines() if not line.startswith("#"))
ERROR_CODES = {each.code: each for each in CODES}


if __name__ == "__main__":
    sys.stdout.write(errors_page(TABLE))
