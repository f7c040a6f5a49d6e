/* EST (RFC 7030) over the TLS of crypto.h. */
#ifndef FLEET_EST_H
#define FLEET_EST_H

#include "agent.h"

/* cacerts: the CAs of the answer, in agent->cas. They count only below an anchor. */
int fleet_est_cacerts(struct fleet_agent *agent, struct fleet_span *cas, size_t *count);

/* simpleenroll with a token, or simplereenroll by `shown`: the certificate, in agent->answer. */
int fleet_est_certificate(struct fleet_agent *agent, const char *token, const struct fleet_identity *shown,
                          struct fleet_span csr, struct fleet_span *issued);

#endif
