"""What relying parties fetch over plain HTTP: CRLs, CA certificates and OCSP. Nothing else is served."""

from fleet.servers.publish.server import build_publish_server as build_publish_server
