#!/usr/bin/env bash
# Shows Portolan with the samples, on the cluster whose env file is the argument. Every command it
# runs is printed, and can be typed again in a shell that has sourced that file.
set -euo pipefail

environment=${1:?usage: demo.sh path/to/env}
# shellcheck disable=SC1090
source "$environment"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly samples=docs/samples
readonly ready='--for=condition=Ready --timeout=120s'
readonly asleep="--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=Asleep --timeout=120s"

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }

run() {
	printf '$ %s\n' "$*"
	"$@"
}

# Asks for a path of a host, as a visitor's browser does once DNS leads the host to the ingress.
ask() {
	local host=$1 path=$2
	printf '$ curl -i -H "Host: %s" $PORTOLAN_HTTP%s\n' "$host" "$path"
	curl --silent --show-error --fail-with-body --max-time 60 --output /dev/null \
		--dump-header - --write-out 'took %{time_total} s\n' \
		--header "Host: $host" "$PORTOLAN_HTTP$path" |
		tr -d '\r' | grep -iE '^(HTTP|x-version|x-sandbox|server-timing|took)'
}

# Applies the echo sample with another version's name in its environment.
echo_version() {
	local change="s/VERSION, value: \"1\"/VERSION, value: \"$1\"/"
	printf "$ sed '%s' %s | kubectl apply --server-side -f -\n" "$change" "$samples/02-echo.yaml"
	sed "$change" "$samples/02-echo.yaml" | kubectl apply --server-side -f -
}

# The first words of a chat.
irc_hello() { printf 'NICK visitor\r\nUSER visitor 0 * :A visitor\r\n'; }

# The question for the address of kubernetes.default.svc.cluster.local.
dns_query() {
	local name='\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00'
	printf '%b' "\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00$name\x00\x01\x00\x01"
}

# Prints the address that ends an answer; fails if it is not the one that Kubernetes has.
address_of_kubernetes() {
	local address
	address=$(tail -c 4 | od -A n -t u1 | sed 's/  */./g; s/^\.//')
	echo "$address"
	[[ $address == "$kubernetes" ]]
}

# Sends what comes in from a Pod of the samples, and prints what is answered.
send() {
	local to=$2://$1
	printf '$ … | kubectl exec --stdin %s -- /sample-echo --send-to %s\n' "$sandbox" "$to" >&2
	kubectl exec --stdin "$sandbox" -- /sample-echo --send-to "$to"
}

kubectl config set-context --current --namespace=portolan-samples >/dev/null

say "Apply the samples and wait until they run"
run kubectl apply --server-side -f "$samples"
# shellcheck disable=SC2086
run kubectl wait $ready app --all
# shellcheck disable=SC2086
run kubectl wait $ready route --all

say "They answer on their hosts"
ask hello.portolan.test /
ask echo.portolan.test /whoami
ask wire.portolan.test /whoami

say "What does not speak HTTP has an address of its own, and node ports"
run kubectl get appservices
printf '$ $PORTOLAN_OUTSIDE bash -c "exec 3<>/dev/tcp/%s/6697; …"\n' "${PORTOLAN_NODES%% *}"
# shellcheck disable=SC2016,SC2086
$PORTOLAN_OUTSIDE timeout 10 bash -c 'exec 3<>"/dev/tcp/$0/6697"
	cat >&3
	grep --max-count=1 " 001 " <&3' "${PORTOLAN_NODES%% *}" < <(irc_hello)
kubernetes=$(kubectl --namespace default get service kubernetes --output jsonpath='{.spec.clusterIP}')
printf '$ $PORTOLAN_OUTSIDE dig @%s -p 5300 kubernetes.default.svc.cluster.local\n' "${PORTOLAN_NODES%% *}"
# A machine may have no dig: the query in bytes, and the address that ends the answer.
# shellcheck disable=SC2016,SC2086
dns_query | $PORTOLAN_OUTSIDE timeout 10 bash -c 'exec 3<>"/dev/udp/$0/5300"
	dd bs=512 iflag=fullblock status=none >&3
	dd bs=512 count=1 status=none <&3' "${PORTOLAN_NODES%% *}" | address_of_kubernetes

say "Pods reach every service by its name, and wake it if it sleeps"
sandbox=$(kubectl get pods --selector portolan.dev/app=echo,portolan.dev/service=wire \
	--output jsonpath='{.items[0].metadata.name}')
run kubectl exec "$sandbox" -- /sample-echo --get http://echo-web.portolan-samples/
run kubectl exec "$sandbox" -- /sample-echo --get http://echo-wire:8080/
echo 'over TCP' | send echo-wire:7000 tcp
echo 'over UDP' | send echo-wire:7001 udp
irc_hello | send chat-irc:6667 tcp | grep ' 001 '
dns_query | send dns-resolver:5300 udp | address_of_kubernetes

say "And by the address that it keeps as long as it exists"
for service in echo-wire:7000 chat-irc:6667; do
	address=$(kubectl get appservice "${service%:*}" --output jsonpath='{.status.clusterIPs[0]}')
	irc_hello | send "$address:${service#*:}" tcp | sed -n 1p
done

say "Nobody asks any more: after ten seconds hello sleeps, and has no Pod"
# shellcheck disable=SC2086
run kubectl wait $asleep app/hello
run kubectl get app/hello
run kubectl wait --for=delete --timeout=60s pod --selector portolan.dev/app=hello
run kubectl get pods --selector portolan.dev/app=hello

say "The first request wakes it; Server-Timing says where the time went"
ask hello.portolan.test /
run kubectl get pods --selector portolan.dev/app=hello

say "Roll echo over to a new version: the old one serves until the new one is verified"
echo_version 2
# shellcheck disable=SC2086
run kubectl wait $ready app/echo
ask echo.portolan.test /whoami

say "Roll back: the old manifest is the old version"
run kubectl apply --server-side -f "$samples/02-echo.yaml"
# shellcheck disable=SC2086
run kubectl wait $ready app/echo
ask echo.portolan.test /whoami
run kubectl get appversions --selector portolan.dev/app=echo

say "All of it"
run kubectl get portolan --all-namespaces
run kubectl get pods --all-namespaces --output wide

say "Go on from your own shell"
cat <<TEXT
source $environment
kubectl get apps --watch                                     # see hello fall asleep
curl -i -H 'Host: hello.portolan.test' \$PORTOLAN_HTTP/       # and wake it
kubectl explain app.spec.services
\$PORTOLAN_OUTSIDE ping -c 1 ${PORTOLAN_NODES%% *}                     # as a host outside the cluster
make load IMAGE=archive.tar                                  # an image of your own
make logs                                                    # everything there is to read
make down
TEXT
