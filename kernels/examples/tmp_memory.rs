//! scratch
fn rss(what: &str) {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    let v: Vec<&str> = s.lines().filter(|l| l.starts_with("RssAnon") || l.starts_with("RssFile")).collect();
    println!("{what}: {v:?}");
}
fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    rss("start");
    let model = ragged_kernels::Model::load(&dir).unwrap();
    rss("model");
    println!("{:?}", model.tokenizer().encode("hello").unwrap());
    rss("encoded");
}
