// Verifies a device's certificate as a Go service would: its chain, and that no CRL of its issuers names it.
// verify_device FOLDER CERTIFICATE, where FOLDER is what `fleet publish` writes.
package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func read(path string) [][]byte {
	text, err := os.ReadFile(path)
	check(err)
	var found [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		found = append(found, block.Bytes)
	}
	return found
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	folder := os.Args[1]
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, der := range read(filepath.Join(folder, "ca.pem")) {
		ca, err := x509.ParseCertificate(der)
		check(err)
		if ca.CheckSignatureFrom(ca) == nil {
			roots.AddCert(ca)
		} else {
			between.AddCert(ca)
		}
	}
	device, err := x509.ParseCertificate(read(os.Args[2])[0])
	check(err)
	chains, err := device.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	check(err)
	lists := read(filepath.Join(folder, "crl.pem"))
	for n, certificate := range chains[0][:len(chains[0])-1] {
		judged := false
		for _, der := range lists {
			list, err := x509.ParseRevocationList(der)
			check(err)
			if list.CheckSignatureFrom(chains[0][n+1]) != nil || time.Now().After(list.NextUpdate) {
				continue
			}
			judged = true
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(certificate.SerialNumber) == 0 {
					check(fmt.Errorf("revoked at %s", entry.RevocationTime))
				}
			}
		}
		if !judged {
			check(fmt.Errorf("no CRL of %s", certificate.Issuer))
		}
	}
}
