//! The words and signs around scores.

use super::digits;

/// Which reply a label names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    A,
    B,
}

/// A number as written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Number {
    pub(super) value: f64,
    /// The maximum of the score, if written: `8/10`, `8 out of 10`, `80 %`, `\frac{8}{10}`.
    pub(super) out_of: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token {
    /// `A`, `b)`, `first`, `第一个`.
    Label(Slot),
    /// `x =` and `y =`: the prompt's names of the two, in a box or a section; elsewhere they may be anything.
    Variable(Slot),
    /// A number; in the text around boxes it may be a label's.
    Number(Number),
    /// Words that a label's letter or number may follow: `Response`, `助手`. The second kind may speak of what a reply
    /// answers, not of its score.
    Noun,
    Answer,
    /// A noun that no letter or number follows.
    Dangling,
    /// `one`, `二`: a label after a noun.
    Count(Slot),
    /// A word that changes nothing, such as `final`.
    Word,
    /// `score`, `rating`, `得分`: what a judge gives, not what a reply answers.
    Score,
    /// `final answer`: of the judge, where no reply is named.
    FinalAnswer,
    /// One that does not where scores are expected; elsewhere it may introduce an answer: `is`, `gets`.
    Verb,
    To,
    Of,
    OutOf,
    Space,
    Break,
    Comma,
    Colon,
    Equals,
    Slash,
    Dash,
    Star,
    Stop,
    /// Anything else.
    Unknown,
}

/// Replies and those who give them, in the languages that judges write.
#[rustfmt::skip]
const NOUNS: &[&str] = &[
    "response", "reply", "assistant", "candidate", "model", "option", "completion", "choice", "resp", "chatbot", "slot",
    "agent", "system", "ai", "bot", "text", "essay", "story", "summary", "translation", "poem", "version", "generation",
    "asistente", "assistente", "assistent", "asistan", "asystent", "asisten", "candidato", "candidat", "kandidat",
    "modelo", "modell", "modèle", "ассистент", "помощник", "модель", "кандидат", "المساعد",
];
#[rustfmt::skip]
const ANSWERS: &[&str] = &[
    "answer", "output", "solution", "ans", "respuesta", "réponse", "reponse", "antwort", "resposta", "risposta",
    "ответ", "відповідь", "yanıt", "yanit", "cevap", "odpowiedź", "odpověď", "odpoveď", "válasz", "răspuns", "răspunsul",
    "απάντηση", "jawaban", "respons", "antwoord", "svar", "vastaus", "תשובה", "الرد", "الإجابة", "الاستجابة", "إجابة",
    "رد", "پاسخ", "hồi", "lời",
];
#[rustfmt::skip]
const VERBS: &[&str] = &[
    "is", "are", "was", "were", "gets", "get", "es", "son", "est", "sont", "ist", "sind", "é", "è", "são", "sono",
];
const PLURALS: [&str; 6] =
    ["responses", "replies", "assistants", "candidates", "models", "options"];
#[rustfmt::skip]
const SCORES: &[&str] = &[
    "score", "scores", "scored", "scoring", "rating", "ratings", "rate", "rated", "grade", "grades", "verdict",
    "judgment", "judgement", "assessment", "evaluation", "scale", "puntuación", "puntuaciones", "puntaje", "puntajes",
    "calificación", "calificaciones", "bewertung", "bewertungen", "punktzahl", "punktzahlen", "noten", "pontuação", "pontuações", "nota", "notas", "punteggio", "punteggi", "оценка", "оценки", "балл", "баллы",
];
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "mark", "marks", "point", "points", "pts", "final", "overall", "total", "reward", "rewards", "the", "a", "an",
    "my", "i", "for", "and", "vs", "versus", "with", "at", "in", "as", "so", "thus", "therefore", "hence", "receives",
    "receive", "received", "earns", "earned", "deserves", "deserve", "assign", "assigned", "give", "given", "awarded",
    "award", "respectively", "order", "both", "each", "follows", "here", "below", "these", "this", "conclusion",
    "would", "be", "based", "on", "above", "all", "it", "that", "together", "come", "comes", "amount",
    "settle", "go", "them", "putting", "taking",
    "considering", "everything", "into", "account", "reasons", "analysis", "accordingly", "consequently", "weighted", "el", "la", "los", "las", "de", "del", "mis", "le",
    "les", "du", "mes", "für", "die", "der", "von", "meine", "para", "da", "do", "das", "os", "minhas", "и", "et",
    "und", "finales", "finale", "finais", "finali", "phản", "câu", "trả",
];
/// Of Chinese, Japanese and Korean, where no space parts words. Longer ones come before what they begin with.
const UNSPACED: &[(&str, Token)] = &[
    ("第一个", Token::Label(Slot::A)),
    ("第二个", Token::Label(Slot::B)),
    ("第一", Token::Label(Slot::A)),
    ("第二", Token::Label(Slot::B)),
    ("甲", Token::Label(Slot::A)),
    ("乙", Token::Label(Slot::B)),
    ("Ａ", Token::Label(Slot::A)),
    ("Ｂ", Token::Label(Slot::B)),
    ("一", Token::Count(Slot::A)),
    ("二", Token::Count(Slot::B)),
    // Scripts whose marks are no letters.
    ("उत्तर", Token::Answer),
    ("प्रतिक्रिया", Token::Answer),
    ("คำตอบ", Token::Answer),
    ("回复", Token::Noun),
    ("回覆", Token::Noun),
    ("回应", Token::Noun),
    ("回應", Token::Noun),
    ("答复", Token::Noun),
    ("响应", Token::Noun),
    ("助手", Token::Noun),
    ("助理", Token::Noun),
    ("候选", Token::Noun),
    ("模型", Token::Noun),
    ("选项", Token::Noun),
    ("応答", Token::Noun),
    ("返答", Token::Noun),
    ("응답", Token::Noun),
    ("답변", Token::Noun),
    ("回答", Token::Noun),
    ("答案", Token::Answer),
    ("输出", Token::Answer),
    ("满分", Token::OutOf),
    ("滿分", Token::OutOf),
    ("总分", Token::Word),
    ("总评", Token::Score),
    ("得分", Token::Score),
    ("评分", Token::Score),
    ("評分", Token::Score),
    ("打分", Token::Score),
    ("分数", Token::Score),
    ("分數", Token::Score),
    ("得点", Token::Score),
    ("点数", Token::Score),
    ("評価", Token::Score),
    ("スコア", Token::Score),
    ("점수", Token::Score),
    ("점", Token::Word),
    ("最终", Token::Word),
    ("最終", Token::Word),
    ("综合", Token::Word),
    ("总体", Token::Word),
    ("获得", Token::Word),
    ("给出", Token::Word),
    ("分别", Token::Word),
    ("给", Token::Word),
    ("得", Token::Word),
    ("分", Token::Word),
    ("点", Token::Word),
    ("的", Token::Word),
    ("为", Token::Word),
    ("為", Token::Word),
    ("和", Token::Word),
    ("与", Token::Word),
    ("與", Token::Word),
    ("对", Token::Word),
    ("の", Token::Word),
    ("は", Token::Word),
    ("と", Token::Word),
    ("是", Token::Verb),
];
/// LaTeX commands that only set or space what follows.
const COMMANDS: [&str; 28] = [
    "text",
    "textbf",
    "textit",
    "textrm",
    "textnormal",
    "texttt",
    "mathbf",
    "mathrm",
    "mathit",
    "mathsf",
    "mathtt",
    "mathnormal",
    "boldsymbol",
    "bm",
    "bf",
    "rm",
    "operatorname",
    "underline",
    "displaystyle",
    "left",
    "right",
    "big",
    "Big",
    "quad",
    "qquad",
    "enspace",
    "hspace",
    "hfill",
];

/// The longest text that is taken apart, in bytes; a longer one states nothing.
const MAX_STATEMENT: usize = 1024;

/// Takes a text apart. What it does not know is [`Token::Unknown`]; so is a number that is not one score, such as
/// `-3`, `7-8`, `1.2.3`, `1e1`, `000`.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    if text.len() > MAX_STATEMENT {
        return vec![Token::Unknown];
    }
    let mut tokens: Vec<Token> = Vec::new();
    let mut rest = text;
    let mut before = '\n';
    while let Some(c) = rest.chars().next() {
        let (token, length) = next(rest, c, before, &tokens);
        tokens.extend(token);
        before = rest[..length].chars().next_back().unwrap_or(before);
        rest = &rest[length..];
    }
    tokens
}

/// The token at the start of `rest`, if it is not mere decoration, and its length in bytes.
fn next(rest: &str, c: char, before: char, so_far: &[Token]) -> (Option<Token>, usize) {
    let length = c.len_utf8();
    let after = rest[length..].chars().next();
    let sign = |token| (Some(token), length);
    let begins_number = |c: Option<char>| c.is_some_and(digits::is_number);
    match c {
        '\n' => sign(Token::Break),
        // A space of LaTeX's, or a range: it parts nothing.
        '~' | '\u{200b}' | '\u{feff}' => (None, length),
        c if c.is_whitespace() => sign(Token::Space),
        '.' if !begins_number(after) => sign(Token::Stop),
        c if digits::is_number(c) => number(rest, before, so_far),
        '-' | '–' | '—' | '‐' | '‑' | '−' | '－' | '→' | '⇒' => match after {
            Some('>') => (Some(Token::Dash), length + 1),
            // A negative number, or a range.
            after if begins_number(after) => sign(Token::Unknown),
            _ => sign(Token::Dash),
        },
        ',' | ';' | '|' | '&' | '，' | '；' | '、' | '،' => sign(Token::Comma),
        ':' | '：' => sign(Token::Colon),
        '=' | '＝' => sign(Token::Equals),
        '/' | '／' => sign(Token::Slash),
        '。' => sign(Token::Stop),
        '*' => sign(Token::Star),
        '\\' => command(rest),
        '_' | '`' | '$' | '#' | '"' | '\'' | '“' | '”' | '‘' | '’' | '「' | '」' | '•' | '●'
        | '(' | ')' | '[' | ']' | '{' | '}' | '（' | '）' | '【' | '】' => match c {
            // `A's`, `I'd`, `I'll`
            '\'' | '’' if matches!(after, Some('s' | 'd')) => (None, length + 1),
            '\'' | '’' if rest[length..].starts_with("ll") => (None, length + 2),
            _ => (None, length),
        },
        c if is_letter(c) => word(rest, before, so_far),
        _ => match UNSPACED.iter().find(|(known, _)| rest.starts_with(known)) {
            Some((known, token)) => (Some(*token), known.len()),
            None => sign(Token::Unknown),
        },
    }
}

fn number(rest: &str, before: char, so_far: &[Token]) -> (Option<Token>, usize) {
    let digits_of = |text: &str| text.find(|c| c == '.' || !digits::is_number(c));
    let whole = digits_of(rest).unwrap_or(rest.len());
    let mut length = whole;
    if rest[length..].starts_with('.') {
        length += 1;
        length += digits_of(&rest[length..]).unwrap_or(rest.len() - length);
    }
    let (written, tail) = rest.split_at(length);
    match (written, tail.get(..2)) {
        ("1", Some("st")) => return (Some(Token::Label(Slot::A)), length + 2),
        ("2", Some("nd")) => return (Some(Token::Label(Slot::B)), length + 2),
        _ => {}
    }
    // "Response1" is a label, "A1" is not.
    let glued = (before.is_ascii_alphanumeric() || before == '.')
        && !matches!(so_far.last(), Some(Token::Noun | Token::Answer));
    let next = tail.chars().next();
    let goes_on = next.is_some_and(|c| c.is_ascii_alphanumeric() || digits::is_number(c));
    let padded = whole > 1
        && written
            .chars()
            .next()
            .is_some_and(|c| digits::float(c.encode_utf8(&mut [0; 4])) == Some(0.0));
    let value = digits::float(written).filter(|_| !glued && !goes_on && !padded);
    let percent = ["\\%", "%", " %", " \\%"].iter().find(|sign| tail.starts_with(**sign));
    let out_of = percent.map(|_| 100.0);
    let token = value.map_or(Token::Unknown, |value| Token::Number(Number { value, out_of }));
    (Some(token), length + percent.map_or(0, |sign| sign.len()))
}

fn command(rest: &str) -> (Option<Token>, usize) {
    let name = &rest[1..];
    let length = name.bytes().take_while(u8::is_ascii_alphabetic).count();
    let name = &name[..length];
    match name {
        // `\,` and the like are spaces, `\{` is a brace.
        "" => match rest[1..].chars().next() {
            Some(',' | ';' | ':' | '!' | ' ') => (Some(Token::Space), 2),
            _ => (None, 1),
        },
        "frac" | "dfrac" | "tfrac" => {
            let parts = rest[1 + length..].strip_prefix('{').and_then(|inside| {
                let (over, inside) = inside.split_once("}{")?;
                let (under, _) = inside.split_once('}')?;
                let whole = |text: &str| text.len() <= 4 && text.chars().all(digits::is_number);
                (whole(over) && whole(under)).then_some((over, under))
            });
            let fraction = parts.and_then(|(over, under)| {
                let out_of = digits::float(under).filter(|value| *value > 0.0);
                let number = Number { value: digits::float(over)?, out_of: Some(out_of?) };
                Some((number, 1 + length + over.len() + under.len() + 4))
            });
            match fraction {
                Some((number, length)) => (Some(Token::Number(number)), length),
                None => (Some(Token::Unknown), 1 + length),
            }
        }
        "quad" | "qquad" | "enspace" | "hfill" => (Some(Token::Space), 1 + length),
        _ if COMMANDS.contains(&name) => (None, 1 + length),
        _ => (Some(Token::Unknown), 1 + length),
    }
}

/// A letter of a script that parts its words.
fn is_letter(c: char) -> bool {
    c.is_alphabetic() && (c < '\u{700}' || ('\u{1e00}'..='\u{1fff}').contains(&c))
}

fn word(rest: &str, before: char, so_far: &[Token]) -> (Option<Token>, usize) {
    let length = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
    let (written, tail) = rest.split_at(length);
    let lower = written.to_lowercase();
    let sign_after = tail.trim_start_matches(['"', '*', '_', '`', '}', ' ', '$']).chars().next();
    let names = matches!(sign_after, Some(':' | '=' | '：' | '＝' | ')' | '）' | ']'));
    let after_noun = so_far.iter().rev().find(|token| !matches!(token, Token::Space | Token::Star));
    let after_noun = matches!(after_noun, Some(Token::Noun | Token::Answer));
    let set_off = matches!(before, '(' | '（' | '[' | '_' | '"');
    let possessive = tail.starts_with("'s") || tail.starts_with("’s");
    let token = match lower.as_str() {
        _ if tail.starts_with(|c: char| c.is_ascii_digit()) && length == 1 => Token::Unknown,
        "a" if written == "A" || names || after_noun || set_off || possessive => {
            Token::Label(Slot::A)
        }
        "b" => Token::Label(Slot::B),
        // Of Cyrillic and Greek, where they are words as well.
        _ if (names || after_noun) && matches!(written, "А" | "Α") => Token::Label(Slot::A),
        _ if (names || after_noun) && matches!(written, "В" | "Б" | "Β") => {
            Token::Label(Slot::B)
        }
        "i" if after_noun && names => Token::Count(Slot::A),
        "ii" if after_noun => Token::Count(Slot::B),
        "x" if names && written == "x" => Token::Variable(Slot::A),
        "y" if names && written == "y" => Token::Variable(Slot::B),
        "first" => Token::Label(Slot::A),
        "second" => Token::Label(Slot::B),
        "two" if PLURALS.iter().any(|word| tail.trim_start().starts_with(word)) => Token::Word,
        "one" => Token::Count(Slot::A),
        "two" => Token::Count(Slot::B),
        "to" => Token::To,
        "of" => Token::Of,
        "out" if tail.trim_start().get(..2).is_some_and(|of| of.eq_ignore_ascii_case("of")) => {
            return (Some(Token::OutOf), length + tail.len() - tail.trim_start().len() + 2);
        }
        // "Responses 1 and 2" holds no scores.
        word if PLURALS.contains(&word) => match tail.trim_start().starts_with(digits::is_number) {
            true => Token::Unknown,
            false => Token::Word,
        },
        word if NOUNS.contains(&word) => Token::Noun,
        word if ANSWERS.contains(&word) => Token::Answer,
        word if VERBS.contains(&word) => Token::Verb,
        word if SCORES.contains(&word) => Token::Score,
        word if WORDS.contains(&word) => Token::Word,
        _ => Token::Unknown,
    };
    let after = match lower.as_str() {
        // "vs." ends no sentence.
        "vs" => usize::from(tail.starts_with('.')),
        // A judge's "final answer" are its scores.
        "final" => {
            let answer = tail.trim_start();
            let follows = answer.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("answer"));
            let ends = !answer[6 * usize::from(follows)..].starts_with(|c: char| c.is_alphabetic());
            if follows && ends {
                return (Some(Token::FinalAnswer), length + tail.len() - answer.len() + 6);
            }
            0
        }
        _ => 0,
    };
    (Some(token), length + after)
}
