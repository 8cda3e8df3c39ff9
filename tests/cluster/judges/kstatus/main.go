// Reads objects as JSON, one after the other, and says of each on a line what kstatus makes of it: `upstream`, the
// library's own home, and `flux`, the fork that Flux and helm are built with.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	flux "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	upstream "sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Upstream string `json:"upstream"`
	Flux     string `json:"flux"`
	Message  string `json:"message"`
}

func judge(object map[string]any) (verdict, error) {
	theirs, err := upstream.Compute(&unstructured.Unstructured{Object: object})
	if err != nil {
		return verdict{}, err
	}
	forked, err := flux.Compute(&unstructured.Unstructured{Object: object})
	if err != nil {
		return verdict{}, err
	}
	return verdict{string(theirs.Status), string(forked.Status), theirs.Message}, nil
}

func run(in io.Reader, out io.Writer) error {
	// Numbers as the client libraries read them: kstatus asks for generations as int64.
	objects, verdicts := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var raw json.RawMessage
		if err := objects.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var object unstructured.Unstructured
		if err := object.UnmarshalJSON(raw); err != nil {
			return err
		}
		said, err := judge(object.Object)
		if err != nil {
			return err
		}
		if err := verdicts.Encode(said); err != nil {
			return err
		}
	}
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "failed to judge an object:", err)
		os.Exit(1)
	}
}
