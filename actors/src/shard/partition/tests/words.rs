//! Searching by words.

use super::shard::TestShard;
use crate::shard::partition::{Partition, PartitionQuery};

fn find(partition: &Partition, text: &str) -> Vec<(String, f32)> {
    let query = PartitionQuery { text: Some(text.to_owned()), depth: 10, ..Default::default() };
    let found = partition.search(&query).unwrap().text;
    found.into_iter().map(|one| (one.document_id, one.score)).collect()
}

#[test]
fn every_script_is_found() {
    let texts = [
        ("zh", "上海是中国最大的城市", "中国"),
        ("ja", "東京タワーは高いです", "タワー"),
        ("one", "京都の冬は寒い", "冬"),
        ("th", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เมืองหลวง"),
        ("ko", "서울은 대한민국의 수도이다", "대한민국"),
        ("hi", "नई दिल्ली भारत की राजधानी है", "राजधानी"),
        ("ar", "القاهرة عاصمة مصر", "عاصمة"),
        ("el", "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας", "ΑΘΗΝΑ"),
        ("ru", "Москва — столица России", "СТОЛИЦА"),
        ("tr", "İstanbul büyük bir şehir", "istanbul"),
        ("vi", "Hà Nội là thủ đô", "ha noi"),
        ("id", "version libfoo-dev_2.4~rc1", "libfoo"),
        ("wide", "ＡＢＣ ｶﾀｶﾅ", "abc"),
    ];
    let shard = TestShard::new(2, "none");
    for (id, text, _) in texts {
        shard.upsert(id, None, "{}", &[(text, vec![1.0, 0.0])]);
    }
    let partition = shard.open();
    for _ in 0..2 {
        for (id, _, query) in texts {
            let found = find(&partition, query);
            assert_eq!(found.first().map(|one| one.0.as_str()), Some(id), "{query}: {found:?}");
        }
        partition.index_with(true).unwrap();
    }
}

#[test]
fn scores_do_not_depend_on_what_is_indexed() {
    let shard = TestShard::new(2, "en");
    let words = ["wing", "flow", "boundary", "layer", "heat", "jet", "shock"];
    let partition = shard.open();
    for number in 0..200usize {
        let text: Vec<&str> = (0..1 + number % 13).map(|place| words[(number * 7 + place * place) % words.len()]).collect();
        shard.upsert(&format!("d{number}"), Some(words[number % 5]), "{}", &[(&text.join(" "), vec![1.0, 0.0])]);
    }
    let queries = ["wings", "boundary layer flow", "the shock and the shock heat", "jet jet jet wing"];
    let before: Vec<_> = queries.iter().map(|query| find(&partition, query)).collect();
    partition.index_with(false).unwrap();
    assert_eq!(partition.status().tail_rows, 0);
    for (query, expected) in queries.iter().zip(before) {
        let found = find(&partition, query);
        assert_eq!(found.len(), expected.len());
        for (one, other) in found.iter().zip(&expected) {
            assert!((one.1 - other.1).abs() < 1e-4, "{query}: {found:?} {expected:?}");
        }
    }
}

#[test]
fn queries_have_no_syntax() {
    let shard = TestShard::new(2, "en");
    shard.upsert("a", None, "{}", &[("brackets and stars", vec![1.0, 0.0])]);
    let partition = shard.open();
    for query in ["text:[a TO b]", "\"unclosed", "+-&&||!(){}^~*?:\\/", "AND OR NOT", "", "   ", "stars^2 AND (", "\u{0}stars"] {
        find(&partition, query);
    }
    assert_eq!(find(&partition, "\u{0}stars*").len(), 1);
}
