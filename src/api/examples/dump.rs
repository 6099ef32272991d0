fn main() {
    for crd in portolan_api::crds::manifests() {
        println!("{}", crd);
    }
}
