// Eclipse Paho's Go clients of 3.1.1 and 5.0 in the scenario of test_clients.py:
// VERSION HOST PORT DEVICE CA CERTIFICATE KEY
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const patience = 120 * time.Second

type denied struct {
	Code   int    `json:"code"`
	Reason string `json:"reason"`
}

type client interface {
	subscribe(filter string) int
	publish(topic, payload string, qos byte) denied
	disconnect()
}

var messages = make(chan string, 10)

func main() {
	version, address, device := os.Args[1], net.JoinHostPort(os.Args[2], os.Args[3]), os.Args[4]
	dial := dialer(address, os.Args[5], os.Args[6], os.Args[7])
	connect := connect311
	if version == "5" {
		connect = connect5
	}
	up := "devices/" + device + "/up/t"
	one, _ := connect(device, dial)
	granted := one.subscribe("devices/" + device + "/down/#")
	for qos, payload := range []string{"0", "1", "2"} {
		one.publish(up, payload, byte(qos))
	}
	told := one.publish("devices/another/up/t", "denied", 1)
	one.publish(up, "after", 1)
	say(map[string]any{"granted": []int{granted}, "denied": told, "got": <-messages})
	bufio.NewReader(os.Stdin).ReadString('\n')
	one.disconnect()
	two, present := connect(device, dial)
	two.publish(up, "again", 1)
	say(map[string]any{"present": present})
	two.disconnect()
}

func say(value any) {
	line, err := json.Marshal(value)
	must(err)
	fmt.Println(string(line))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dialer reads the files at each connection.
func dialer(address, ca, certificate, key string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		root, err := os.ReadFile(ca)
		must(err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(root)
		pair, err := tls.LoadX509KeyPair(certificate, key)
		must(err)
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}})
		if err != nil {
			return nil, err
		}
		// A packet is several writes: without a lock, a PUBACK of one goroutine lands within a PUBLISH of another.
		return packets.NewThreadSafeConn(conn), nil
	}
}

type v311 struct{ client mqtt.Client }

func connect311(device string, dial func() (net.Conn, error)) (client, bool) {
	options := mqtt.NewClientOptions().AddBroker("tls://gateway").SetClientID(device).SetProtocolVersion(4)
	options.SetCleanSession(false).SetAutoReconnect(false).SetConnectRetry(false)
	options.SetCustomOpenConnectionFn(func(_ *url.URL, _ mqtt.ClientOptions) (net.Conn, error) { return dial() })
	options.SetConnectionLostHandler(func(_ mqtt.Client, err error) { must(err) })
	options.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { messages <- string(m.Payload()) })
	made := mqtt.NewClient(options)
	token := made.Connect().(*mqtt.ConnectToken)
	wait(token)
	return v311{made}, token.SessionPresent()
}

func wait(token mqtt.Token) {
	if !token.WaitTimeout(patience) {
		must(fmt.Errorf("no answer"))
	}
	must(token.Error())
}

func (c v311) subscribe(filter string) int {
	token := c.client.Subscribe(filter, 1, nil).(*mqtt.SubscribeToken)
	wait(token)
	return int(token.Result()[filter])
}

func (c v311) publish(topic, payload string, qos byte) denied {
	wait(c.client.Publish(topic, qos, false, payload))
	return denied{}
}

func (c v311) disconnect() { c.client.Disconnect(250) }

type v5 struct {
	client *paho.Client
	done   *atomic.Bool
}

func connect5(device string, dial func() (net.Conn, error)) (client, bool) {
	conn, err := dial()
	must(err)
	done := new(atomic.Bool)
	made := paho.NewClient(paho.ClientConfig{
		Conn:          conn,
		PacketTimeout: patience,
		OnClientError: func(err error) {
			if !done.Load() { // it reports its own closing, too
				must(err)
			}
		},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(m paho.PublishReceived) (bool, error) {
			messages <- string(m.Packet.Payload)
			return true, nil
		}},
	})
	expiry := uint32(600)
	connack, err := made.Connect(forever, &paho.Connect{
		ClientID: device, KeepAlive: 30, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, RequestProblemInfo: true},
	})
	must(err)
	return v5{made, done}, connack.SessionPresent
}

// The packets have a timeout of their own, 10 s unless it is set.
var forever = context.Background()

func (c v5) subscribe(filter string) int {
	suback, err := c.client.Subscribe(forever, &paho.Subscribe{
		Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}},
	})
	must(err)
	return int(suback.Reasons[0])
}

func (c v5) publish(topic, payload string, qos byte) denied {
	answer, err := c.client.Publish(forever, &paho.Publish{Topic: topic, QoS: qos, Payload: []byte(payload)})
	if answer == nil || answer.ReasonCode < 0x80 {
		must(err)
		return denied{}
	}
	return denied{int(answer.ReasonCode), answer.Properties.ReasonString}
}

func (c v5) disconnect() {
	c.done.Store(true)
	must(c.client.Disconnect(&paho.Disconnect{}))
}
