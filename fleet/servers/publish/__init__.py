"""What relying parties fetch over plain HTTP: CRLs, CA certificates and OCSP. Nothing else is served."""
