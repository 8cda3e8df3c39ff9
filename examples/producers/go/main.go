// Posts one event until Tidings has it, with the CloudEvents SDK for Go. Arguments, environment and exit codes are those of
// ../curl/send.sh:
//
//	go run . lead.qualified /agents/voice lead-2041 <data.json
//
// The SDK's client neither sends again unless it is asked to, nor tells Retry-After. So the SDK writes the request, and
// net/http sends it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

var client = http.Client{Timeout: 30 * time.Second}

// post returns the status (0: no answer), Retry-After and the body.
func post(event cloudevents.Event) (status int, retryAfter, body string) {
	url := os.Getenv("TIDINGS_URL") + "/v1/namespaces/" + os.Getenv("NAMESPACE") + "/events"
	request, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := cehttp.WriteRequest(context.Background(), binding.ToMessage(&event), request); err != nil {
		log.Fatal(err)
	}
	// Each time: the kubelet renews it.
	token, err := os.ReadFile(env("TOKEN_FILE", "/var/run/secrets/tidings/token"))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err.Error()
	}
	defer response.Body.Close()
	told, _ := io.ReadAll(response.Body)
	return response.StatusCode, response.Header.Get("Retry-After"), string(told)
}

// again tells whether the same event can be accepted in time: its id makes that safe. 401: the file has a newer token then.
func again(status int) bool {
	switch status {
	case 0, http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

func send(event cloudevents.Event, giveUp time.Time) {
	for backoff := 1; ; backoff = min(backoff*2, 30) {
		status, retryAfter, body := post(event)
		if status >= 200 && status < 300 {
			fmt.Println(body)
			return
		}
		if !again(status) {
			fmt.Fprintf(os.Stderr, "refused: %d %s\n", status, body)
			os.Exit(1)
		}
		after, err := strconv.Atoi(retryAfter)
		if err != nil {
			after = backoff
		}
		wait := time.Duration(after) * time.Second
		if time.Now().Add(wait).After(giveUp) {
			fmt.Fprintf(os.Stderr, "given up: %d\n", status)
			os.Exit(75)
		}
		fmt.Fprintf(os.Stderr, "not yet: %d, again in %d s\n", status, after)
		time.Sleep(wait)
	}
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: producer TYPE SOURCE ID < DATA")
	}
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	seconds, err := strconv.Atoi(env("GIVE_UP_AFTER", "300"))
	if err != nil {
		log.Fatal(err)
	}
	event := cloudevents.NewEvent()
	event.SetType(os.Args[1])
	event.SetSource(os.Args[2])
	event.SetID(os.Args[3])
	if err := event.SetData(cloudevents.ApplicationJSON, json.RawMessage(data)); err != nil {
		log.Fatal(err)
	}
	if err := event.Validate(); err != nil {
		log.Fatal(err)
	}
	send(event, time.Now().Add(time.Duration(seconds)*time.Second))
}
