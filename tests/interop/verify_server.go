// verify_server PORT ROOT.pem: whether Go verifies the certificate of localhost:PORT with this root alone.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

func main() {
	pem, err := os.ReadFile(os.Args[2])
	roots := x509.NewCertPool()
	if err == nil && !roots.AppendCertsFromPEM(pem) {
		err = fmt.Errorf("no certificate in %s", os.Args[2])
	}
	if err == nil {
		// A listener that asks for a client certificate refuses us after the handshake.
		_, err = tls.Dial("tcp", "127.0.0.1:"+os.Args[1], &tls.Config{RootCAs: roots, ServerName: "localhost"})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
