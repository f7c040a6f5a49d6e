// Asks an OCSP responder about a certificate as a Go service would, by POST and by GET (RFC 6960, A.1), and prints what
// each says: good, revoked with its reason, or unknown. main URL ISSUER CERTIFICATE
package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/crypto/ocsp"
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func read(path string) *x509.Certificate {
	text, err := os.ReadFile(path)
	check(err)
	block, _ := pem.Decode(text)
	certificate, err := x509.ParseCertificate(block.Bytes)
	check(err)
	return certificate
}

func show(answer *http.Response, certificate, issuer *x509.Certificate) {
	body, err := io.ReadAll(answer.Body)
	check(err)
	response, err := ocsp.ParseResponseForCert(body, certificate, issuer)
	check(err)
	switch response.Status {
	case ocsp.Good:
		fmt.Println("good")
	case ocsp.Revoked:
		fmt.Println("revoked", response.RevocationReason)
	default:
		fmt.Println("unknown")
	}
}

func main() {
	issuer, certificate := read(os.Args[2]), read(os.Args[3])
	request, err := ocsp.CreateRequest(certificate, issuer, nil)
	check(err)
	answer, err := http.Post(os.Args[1], "application/ocsp-request", bytes.NewReader(request))
	check(err)
	show(answer, certificate, issuer)
	answer, err = http.Get(os.Args[1] + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(request)))
	check(err)
	show(answer, certificate, issuer)
}
