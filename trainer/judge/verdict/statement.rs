//! Two scores in words: which is whose.
//!
//! A statement holds exactly two scores. Positions decide, A's first, only where nothing around them names a reply;
//! else the names do, if they name A and B once each, in one of these ways, and else nobody does:
//!
//! ```text
//! A: 8, B: 6      before each       8 (A), 6 (B)      after each
//! A and B: 8, 6   all before        8, 6 (A and B)    all after
//! ```
//!
//! Between a name and its score stand known words only ([`super::words`]): in `Response A accuracy: 4, clarity: 9`
//! neither number is a reply's score.

use super::UnparsedReason;
use super::words::{Number, Slot, Token, tokens};

/// How freely a statement may be worded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The inside of a box, or a section without boxes: every word must be known.
    Plain,
    /// Boxes in a scores section: the rest of a line may give reasons.
    Section,
    /// Boxes elsewhere: every word must be known, and none may introduce an answer.
    Loose,
}

/// The two numbers of a text without boxes, A's first.
pub(super) fn two_numbers(text: &str) -> Result<(Number, Number), UnparsedReason> {
    let tokens = resolve(&tokens(text), Place::Plain, &|_| true);
    match scores(&tokens)[..] {
        [_, _] if !tokens.contains(&Token::Unknown) => assign(&tokens, Place::Plain),
        _ => Err(UnparsedReason::BadNumber),
    }
}

/// The tokens of a box that holds one number and perhaps its label.
pub(super) fn one_number(text: &str) -> Option<Vec<Token>> {
    let tokens = resolve(&tokens(text), Place::Plain, &|_| true);
    let known = tokens.iter().all(|token| is_known(*token, Place::Plain));
    (known && scores(&tokens).len() == 1).then_some(tokens)
}

/// The scores of two boxes of one number each, A's first, from these boxes and the text before, between and after.
pub(super) fn two_boxes(
    before: &str,
    first: &[Token],
    between: &str,
    second: &[Token],
    after: &str,
    place: Place,
) -> Result<(Number, Number), UnparsedReason> {
    let asides = [before, between].map(|text| aside(text).filter(|_| place == Place::Section));
    // `A (concise): 8, B (thorough): 6`; the same words for both are what is scored.
    let apart = matches!(asides, [Some((_, first, _)), Some((_, second, _))] if first != second);
    let gap = |text: &str| match aside(text) {
        Some((before, _, after)) if apart => [tokens(before), tokens(after)].concat(),
        _ => tokens(text),
    };
    let mut all = gap(before);
    // In the text around boxes a number is a label's, or what a score is out of: those of the boxes are marked.
    let boxed = |all: &mut Vec<Token>, tokens: &[Token]| {
        let start = all.len();
        all.extend(tokens);
        start..all.len()
    };
    let first = boxed(&mut all, first);
    all.extend(gap(between));
    let second = boxed(&mut all, second);
    all.extend(gap(after));
    let is_score = |at: usize| first.contains(&at) || second.contains(&at);
    let all = resolve(&all, place, &is_score);
    match scores(&all)[..] {
        [_, _] => assign(&all, place),
        _ => Err(UnparsedReason::Ambiguous),
    }
}

/// The last parenthesis before a colon in a text, with what stands before and after it, if its words are not known and name no
/// reply and no number: reasons.
fn aside(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.rsplit_once('(')?;
    let (inside, after) = rest.split_once(')')?;
    let unknown = names(inside, Place::Section).is_none() && !names_a_reply(inside);
    let reasons = unknown && !inside.contains(char::is_numeric);
    (reasons && after.trim_start_matches(['*', ' ']).starts_with(':'))
        .then_some((before, inside, after))
}

/// Whether a text holds known words only, and no label or number.
pub(super) fn is_heading(text: &str) -> bool {
    names(text, Place::Section).is_some_and(|names| names.is_empty())
}

/// The replies that a text of known words names, in order; `None` if it holds another word, or a number.
pub(super) fn names(text: &str, place: Place) -> Option<Vec<Slot>> {
    let tokens = resolve(&tokens(text), place, &|_| false);
    let known = tokens.iter().all(|token| is_known(*token, place) && *token != Token::Dangling);
    let names = labels(&tokens);
    let answer = match names[..] {
        [] => place == Place::Loose && says_an_answer(&tokens),
        _ => may_be_an_answer(&tokens, place),
    };
    (known && !answer && !(place == Place::Loose && Wording::of(text).form)).then_some(names)
}

/// Whether the words before a box with two scores, some of which may be unknown, are the judge's own: `Based on this,
/// \boxed{7, 9}`, `Weighing all of it, my scores are \boxed{7, 9}`. Since a box may hold an answer as well, the last
/// clause holds known words only, and names a score if it says what something is.
pub(super) fn introduces_scores(text: &str) -> bool {
    let tokens = resolve(&tokens(text), Place::Loose, &|_| false);
    let unknown = tokens.iter().rposition(|token| *token == Token::Unknown);
    let known = &tokens[unknown.map_or(0, |at| at + 1)..];
    let scored = known.contains(&Token::Score);
    let clause = known.iter().rposition(|token| *token == Token::Comma);
    let wording = Wording::of(text);
    matches!(labels(&tokens)[..], [] | [Slot::A, Slot::B])
        && !tokens.contains(&Token::Equals)
        && match scored {
            true => !wording.form,
            false => {
                clause.is_some_and(|at| !says_an_answer(&known[at..]))
                    && wording
                        == Wording {
                            digits: tokens.contains(&Token::Score) && wording.digits,
                            ..Wording::default()
                        }
            }
        }
}

/// Subjects of words that statements do not know.
#[derive(Default, PartialEq)]
struct Wording {
    /// How a verdict is to be written, or what replies give.
    form: bool,
    /// The question that a reply answers.
    answer: bool,
    digits: bool,
}

impl Wording {
    #[rustfmt::skip]
    fn of(text: &str) -> Wording {
        const FORMS: &[&str] = &[
            "example", "instance", "e.g", "format", "the form", "template", "as in", "such as", "something like",
            "例如", "比如", "格式",
        ];
        // "Both responses give", "it says": replies speak, or texts in them.
        const QUOTED: &[&str] = &[
            "ses give", "lies give", "both give", "ants give", "dels give", "ates give", "it give", " say", " said",
            " stat", " claim", " tell", " told", " writes", " write ", " wrote", " written", " quot", "sentence", "cheat",
            "contains", " reads", "ends with", " end with", "mention", " asks", " demand", " instruct",
        ];
        const ANSWERS: &[&str] = &[
            "answer", "solution", "solv", "root", "result", "equal", "comput", "calculat", "obtain", "yield", "the set",
            "interval", "coordinat", "vector", "value", "output", "correct ", "respond", "question", "problem", "conclude",
            "答案", "解", "根", "结果",
        ];
        let lower = text.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        Wording {
            form: has(FORMS) || has(QUOTED),
            answer: has(ANSWERS),
            digits: lower.contains(char::is_numeric),
        }
    }
}

/// Whether a clause says what something is that is no score and not the judge's final answer.
fn says_an_answer(clause: &[Token]) -> bool {
    let has = |kinds: &[Token]| clause.iter().any(|token| kinds.contains(token));
    has(&[Token::Verb, Token::Equals]) && !has(&[Token::Score, Token::FinalAnswer])
}

/// Whether a text ends in the midst of a clause that says what something is, such as `The answer is`.
pub(super) fn is_unfinished(text: &str) -> bool {
    let tokens = tokens(text);
    let last = tokens.iter().rfind(|token| !matches!(token, Token::Space | Token::Star));
    matches!(last, Some(Token::Verb | Token::Equals))
}

/// Whether a text, of whatever words, names a reply.
pub(super) fn names_a_reply(text: &str) -> bool {
    !labels(&resolve(&tokens(text), Place::Section, &|_| false)).is_empty()
}

fn scores(tokens: &[Token]) -> Vec<usize> {
    let is_score = |at: &usize| matches!(tokens[*at], Token::Number(_));
    (0..tokens.len()).filter(is_score).collect()
}

/// Settles what depends on neighbors: nouns and the labels after them, and what numbers are out of. `is_score` says
/// of a number's place whether it may be a score.
fn resolve(tokens: &[Token], place: Place, is_score: &dyn Fn(usize) -> bool) -> Vec<Token> {
    let blank = |token: &Token| matches!(token, Token::Space | Token::Star);
    let mut resolved: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let last = resolved.iter().rposition(|token| !blank(token));
        let following = (at + 1..tokens.len()).find(|next| !blank(&tokens[*next]));
        let next = following.map(|next| tokens[next]);
        let out = match tokens[at] {
            noun @ (Token::Noun | Token::Answer) => {
                let slot = match next {
                    Some(Token::Label(slot) | Token::Count(slot)) => Some(slot),
                    Some(Token::Number(number)) => slot_of(number).filter(|_| {
                        let place = following.expect("it was found");
                        let over = (place + 1..tokens.len()).find(|next| !blank(&tokens[*next]));
                        !over
                            .is_some_and(|over| matches!(tokens[over], Token::Slash | Token::OutOf))
                    }),
                    _ => None,
                };
                let may_answer = noun == Token::Answer;
                if let Some(slot) = slot {
                    if may_answer {
                        resolved.push(Token::Verb);
                    }
                    at = following.expect("it was found");
                    Token::Label(slot)
                } else if may_answer {
                    // "Response A's answer" is what it answers, not its score.
                    Token::Unknown
                } else if last
                    .is_some_and(|last| matches!(resolved[last], Token::Label(_) | Token::Score))
                {
                    Token::Word
                } else {
                    Token::Dangling
                }
            }
            Token::Count(_) => Token::Unknown,
            Token::Variable(slot) if is_score(at) => Token::Label(slot),
            Token::Variable(_) => Token::Unknown,
            Token::Slash | Token::OutOf => {
                let scored = last.filter(|last| matches!(resolved[*last], Token::Number(_)));
                match (scored, next) {
                    (Some(score), Some(Token::Number(Number { value, out_of: None }))) => {
                        let Token::Number(number) = &mut resolved[score] else { unreachable!() };
                        if number.out_of.is_some() || value == 0.0 {
                            Token::Unknown
                        } else {
                            number.out_of = Some(value);
                            at = following.expect("it was found");
                            Token::Space
                        }
                    }
                    _ if tokens[at] == Token::Slash
                        && last.is_some_and(|last| matches!(resolved[last], Token::Label(_))) =>
                    {
                        Token::Comma
                    }
                    _ => Token::Unknown,
                }
            }
            // The number of a list's item that has a name of its own.
            Token::Number(_)
                if !is_score(at)
                    && last.is_none_or(|last| resolved[last] == Token::Break)
                    && matches!(next, Some(Token::Noun | Token::Answer | Token::Label(_))) =>
            {
                Token::Space
            }
            // Elsewhere than in a section "(1)" and "(2)" are parts of a problem.
            Token::Number(number) if !is_score(at) => match slot_of(number) {
                Some(slot) if place == Place::Section => Token::Label(slot),
                _ => Token::Unknown,
            },
            token => token,
        };
        resolved.push(out);
        at += 1;
    }
    resolved
}

fn slot_of(number: Number) -> Option<Slot> {
    match number {
        Number { value: 1.0, out_of: None } => Some(Slot::A),
        Number { value: 2.0, out_of: None } => Some(Slot::B),
        _ => None,
    }
}

fn is_known(token: Token, place: Place) -> bool {
    match token {
        Token::Unknown => false,
        Token::Dangling => place != Place::Loose,
        _ => true,
    }
}

/// Whether there are words that, with a reply's name, may introduce what it answers: `final answer`, and outside of
/// scores sections `is`, `gets` and equals signs.
fn may_be_an_answer(tokens: &[Token], place: Place) -> bool {
    let loose = |token: &Token| matches!(token, Token::Verb | Token::Equals);
    tokens.contains(&Token::FinalAnswer)
        || (place == Place::Loose && tokens.iter().any(loose) && !tokens.contains(&Token::Score))
}

/// The labels of a stretch; one that is said twice in a row counts once.
fn labels(tokens: &[Token]) -> Vec<Slot> {
    let mut labels: Vec<Slot> = tokens.iter().filter_map(slot).collect();
    labels.dedup();
    labels
}

fn slot(token: &Token) -> Option<Slot> {
    match token {
        Token::Label(slot) => Some(*slot),
        _ => None,
    }
}

/// The scores of A and B from tokens with exactly two numbers.
fn assign(tokens: &[Token], place: Place) -> Result<(Number, Number), UnparsedReason> {
    let at = scores(tokens);
    let (s1, s2) = (at[0], at[1]);
    let (Token::Number(first), Token::Number(second)) = (tokens[s1], tokens[s2]) else {
        unreachable!("scores are numbers");
    };
    let is_break = |token: &Token| *token == Token::Break;
    let known = |tokens: &[Token]| tokens.iter().all(|token| is_known(*token, place));
    let mut before = &tokens[..s1];
    let between = &tokens[s1 + 1..s2];
    let after = &tokens[s2 + 1..];
    if place != Place::Plain {
        let line = before.iter().rposition(is_break).map_or(0, |at| at + 1);
        if before[line..].iter().any(|token| slot(token).is_some()) {
            before = &before[line..];
        }
    }
    let named = [before, between, after].map(labels);
    let named_some = named.iter().any(|names| !names.is_empty());
    if !known(before) || (named_some && may_be_an_answer(tokens, place)) {
        return Err(UnparsedReason::Ambiguous);
    }
    let in_order = Ok((first, second));
    let by = |slot: Slot| if slot == Slot::A { in_order } else { Ok((second, first)) };
    let place_of = |tokens: &[Token]| tokens.iter().position(|token| slot(token).is_some());
    match [&named[0][..], &named[1][..], &named[2][..]] {
        [[], [], []] => {
            let unnamed = !before.iter().chain(after).chain(between).any(|t| *t == Token::Dangling);
            match unnamed && known(between) && known(after) && parted(between, place) {
                true => in_order,
                false => Err(UnparsedReason::Ambiguous),
            }
        }
        [[x], [y], []] if x != y => {
            // Reasons may follow the first score up to the end of its line, in a section.
            let name = place_of(between).expect("it has a label");
            let reasons = &between[..name];
            let line = reasons.iter().rposition(is_break);
            let free = line.filter(|_| place == Place::Section).map_or(0, |at| at + 1);
            let rest_is_known = place == Place::Section || known(after);
            // `8 (A), 5` names the score before.
            let apart = |t: &Token| matches!(t, Token::Break | Token::Comma | Token::Stop);
            let names_next = reasons.iter().any(apart) || !between[name..].iter().any(apart);
            match known(&between[free..]) && rest_is_known && names_next {
                true => by(*x),
                false => Err(UnparsedReason::Ambiguous),
            }
        }
        [[], [x], [y]] if x != y => {
            let (name, last) = (place_of(between), place_of(after));
            let (name, last) = name.zip(last).expect("both have a label");
            let apart = |t: &Token| matches!(t, Token::Break | Token::Comma | Token::Stop);
            let attached = !between[..name].iter().chain(&after[..last]).any(apart);
            let names_next =
                between[name..].iter().any(|t| matches!(t, Token::Colon | Token::Equals));
            let rest = if place == Place::Section { &after[..last] } else { after };
            match attached && !names_next && known(between) && known(rest) {
                true => by(*x),
                false => Err(UnparsedReason::Ambiguous),
            }
        }
        [[x, y], [], []] | [[], [], [x, y]] if x != y => {
            match known(between) && known(after) && parted(between, place) {
                true => by(*x),
                false => Err(UnparsedReason::Ambiguous),
            }
        }
        _ => Err(UnparsedReason::Ambiguous),
    }
}

/// Whether what stands between two scores parts them, and is not a sign that makes one number of them: a range, a
/// product, an equation.
fn parted(between: &[Token], place: Place) -> bool {
    let has = |token: Token| between.contains(&token);
    let parts = |token: &Token| {
        matches!(
            token,
            Token::Comma | Token::Break | Token::Word | Token::Score | Token::Colon | Token::Space
        )
    };
    let whole = [Token::Comma, Token::Break, Token::Word, Token::Score].into_iter().any(has);
    let stars = between.iter().filter(|token| **token == Token::Star).count();
    let product = stars == 1 && !whole;
    let range = !whole && (has(Token::Dash) || has(Token::To));
    !product
        && !has(Token::Of)
        && !has(Token::Equals)
        && (place != Place::Plain || (!range && between.iter().any(parts)))
}
