// Compares two CustomResourceDefinitions, the second being the later, and prints as JSON what crdify says of the change:
// crdify CONFIG OLD NEW.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/crdify/pkg/config"
	"sigs.k8s.io/crdify/pkg/runner"
	"sigs.k8s.io/yaml"
)

func definition(path string) (*apiextensions.CustomResourceDefinition, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	read := &apiextensions.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, read); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return read, nil
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: crdify CONFIG OLD NEW")
	}
	configured, err := config.Load(args[0])
	if err != nil {
		return err
	}
	comparison, err := runner.New(configured, runner.DefaultRegistry())
	if err != nil {
		return err
	}
	before, err := definition(args[1])
	if err != nil {
		return err
	}
	after, err := definition(args[2])
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(comparison.Run(before, after))
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "failed to compare:", err)
		os.Exit(1)
	}
}
