package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUser(t *testing.T) {
	parse := func(user string) (*Config, error) {
		return Parse("cup.json", []byte("{\"root\": \"127.0.0.1:1\",\n  \"user\": "+user+
			",\n  \"routes\": {\"*\": {\"backends\": [{\"host\": \"127.0.0.1:2\"}]}}}"), "/")
	}
	for text, want := range map[string]User{
		`"cup"`: {Name: "cup"}, `"cup:web"`: {Name: "cup", Group: "web"}, `"1000:33"`: {Name: "1000", Group: "33"},
	} {
		c, err := parse(text)
		require.NoError(t, err)
		require.Equal(t, want.Name, c.User.Name)
		require.Equal(t, want.Group, c.User.Group)
		require.Equal(t, text, `"`+c.User.String()+`"`)
		require.EqualError(t, c.User.Refuse("nobody of that name"),
			"cup.json:2:11: user: nobody of that name\n    \"user\": "+text+",\n            ^")
	}
	for _, text := range []string{`""`, `":"`, `"cup:"`, `":web"`, `"a:b:c"`, `"a b"`, `"a\n"`, `1000`, `["cup"]`} {
		_, err := parse(text)
		require.ErrorContains(t, err, "cup.json:2:", text)
		require.ErrorContains(t, err, "user", text)
	}
}
