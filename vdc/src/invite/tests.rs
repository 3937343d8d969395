use std::time::{Duration, Instant};

use minicbor::bytes::ByteVec;

use super::*;
use crate::record::{Body, ContactAddress, Genesis};
use crate::roster::issue::{self, IssueError};
use crate::roster::tests::lab::{DAY, Lab, NOW, contact_body, key, name, offer_until_stable};
use crate::roster::{Outcome, Roster, Standing};
use crate::{Hash, InviteId, Key, Office, Signed, SiteNumber, UnixTime, WgKey};

const HOUR: u64 = 3600;

fn options(site: SiteNumber) -> InviteOptions {
    InviteOptions { site, uses: 1, expires: UnixTime(NOW.0 + HOUR), founder: false, ephemeral: false }
}

fn registrar_at(who: &str) -> InviteRegistrar {
    let addresses =
        vec![ContactAddress::Ip([203, 0, 113, 9].into(), 7001), ContactAddress::Dns("paris.example.org".into(), 7001)];
    InviteRegistrar { key: key(who).public(), addresses }
}

fn create(lab: &Lab, registrar: &str, options: &InviteOptions) -> (Invite, InviteState) {
    let (id, seed) = (InviteId([3; 16]), [4; 32]);
    InviteState::create(&lab.view(), &key(registrar), vec![registrar_at(registrar)], options, id, seed, NOW)
        .expect("may invite")
}

fn secrets(node: &str) -> NodeSecrets {
    NodeSecrets::from_seeds(&key(node).seed(), &blake3::derive_key("meshd test wireguard secret", node.as_bytes()))
}

/// Asks for a challenge and answers it, with the link that both ends saw.
fn answer(invite: &Invite, registrar: &str, node: &NodeSecrets, asked: &str) -> (Redeem, Challenge) {
    let joiner = node.node.public();
    let challenge = Challenge::new(&[9; 32], joiner, Instant::now());
    let DoorResponse::Challenge(question) = challenge.question() else { unreachable!("a question") };
    let link = Link { registrar: key(registrar).public(), joiner };
    (Redeem::answer(invite, node, &link, &question, name(asked)).expect("an honest question"), challenge)
}

fn redeem(lab: &Lab, state: &InviteState, invite: &Invite, registrar: &str, node: &str) -> Result<Redemption, Refusal> {
    let (request, challenge) = answer(invite, registrar, &secrets(node), node);
    state.redeem(&lab.view(), &key(registrar), 500, &request, challenge, NOW)
}

fn store(lab: &mut Lab, redemption: &Redemption) {
    for record in &redemption.records {
        assert_eq!(lab.roster.insert(record.clone()), Outcome::New);
    }
}

fn granted(lab: &Lab, node: &str) -> Vec<ByteVec> {
    match grant(&lab.roster, &key(node).public()) {
        DoorResponse::Granted(records) => records,
        other => panic!("{other:?}"),
    }
}

#[test]
fn token_survives_line_breaks_and_says_what_happened_to_it() {
    let lab = Lab::new();
    let (invite, _) = create(&lab, "berlin1", &options(lab.berlin));
    let token = invite.token();
    assert_eq!(Invite::parse(&token).expect("intact"), invite);
    let wrapped = format!("  {}\n{}\r\n", &token[..70], &token[70..]);
    assert_eq!(Invite::parse(&wrapped).expect("wrapped by a terminal"), invite);
    let error = |text: &str| Invite::parse(text).expect_err("not an invite").to_string();
    for (text, expected) in [
        (String::new(), "this is not an invite"),
        ("hello".to_owned(), "this is not an invite"),
        (token.replace("vdc1.", "vdcx."), "this is not an invite"),
        (token.replace("vdc1.", "vdc2."), "the invite has format vdc2"),
        ("vdc1.".to_owned(), "the invite was cut off"),
        ("vdc1.AB".to_owned(), "the invite was cut off"),
        (token[..token.len() - 1].to_owned(), "the invite was cut off"),
        (token[..40].to_owned(), "the invite was cut off"),
        (format!("{token}AAAA"), "4 characters follow"),
        (token.replace(&token[60..61], "!"), "of the invite cannot be part of one"),
        ("vdc1.".to_owned() + &"A".repeat(3 * TOKEN_CHARS_MAX), "longer than"),
    ] {
        let found = error(&text);
        assert!(found.contains(expected), "{:.40}: {found}", text);
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_token_is_noticed() {
    let lab = Lab::new();
    let (invite, _) = create(&lab, "berlin1", &options(lab.berlin));
    let token = invite.token().into_bytes();
    for index in 0..token.len() {
        for bit in 0..7 {
            let mut flipped = token.clone();
            flipped[index] ^= 1 << bit;
            let text = String::from_utf8(flipped).expect("seven bits stay ASCII");
            assert!(Invite::parse(&text).is_err(), "{index} {bit}");
        }
        let cut = std::str::from_utf8(&token[..index]).expect("ASCII");
        assert!(Invite::parse(cut).is_err(), "cut at {index}");
    }
}

#[test]
fn token_of_another_maker_or_time_is_refused() {
    let lab = Lab::new();
    let (invite, _) = create(&lab, "berlin1", &options(lab.berlin));
    assert!(invite.check_time(invite.expires).is_ok());
    let late = UnixTime(NOW.0 + HOUR + 1);
    let text = invite.check_time(late).expect_err("expired").to_string();
    assert!(text.contains("expired at 2027-01-15T09:00:00Z") && text.contains("clock"), "{text}");
    let stolen = Invite { registrars: vec![registrar_at("thief")], ..invite.clone() };
    assert!(matches!(Invite::parse(&stolen.token()), Err(InviteError::Pass)));
    let longer = Invite { expires: UnixTime(NOW.0 + DAY), ..invite.clone() };
    assert!(matches!(Invite::parse(&longer.token()), Err(InviteError::Pass)));
    let pass = invite.pass();
    assert!(pass.verify());
    assert!(!Pass { expires: longer.expires, ..pass }.verify());
}

#[test]
fn debug_output_never_shows_a_secret() {
    let lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let invite = Invite { seed: [0xab; 32], ..invite };
    let (request, challenge) = answer(&invite, "paris1", &secrets("x"), "x");
    let text = format!("{invite:?} {state:?} {:?} {challenge:?} {request:?}", secrets("x"));
    for secret in [[0xab; 32], key("x").seed()] {
        assert!(!text.contains(&data_encoding::HEXLOWER.encode(&secret)));
        assert!(!text.contains(&format!("{:?}", &secret[..8]).replace(['[', ']'], "")));
    }
}

#[test]
fn joiner_redeems_and_checks_the_chain_up_to_the_genesis() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let redemption = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    assert_eq!((redemption.state.uses_left, redemption.number_next), (0, 501));
    store(&mut lab, &redemption);
    let joined =
        Joined::verify(&invite.vdc, &secrets("berlin2"), &granted(&lab, "berlin2"), NOW).expect("a whole chain");
    let own = &joined.view.members[&key("berlin2").public()];
    assert_eq!((own.full_name().as_str(), own.standing), ("berlin2.berlin", Standing::Current));
    assert_eq!((joined.refused, joined.clock_behind), (0, Duration::ZERO));
    assert_eq!(joined.roster.len(), lab.roster.len());
    // A clock that is a day behind, and one that is a day ahead.
    let check = |now| Joined::verify(&invite.vdc, &secrets("berlin2"), &granted(&lab, "berlin2"), UnixTime(now));
    assert_eq!(check(NOW.0 - DAY).expect("behind").clock_behind, Duration::from_secs(DAY));
    assert!(check(NOW.0 + DAY).is_ok());
}

#[test]
fn chain_alone_suffices_when_the_roster_does_not_fit() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let redemption = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    store(&mut lab, &redemption);
    let all = granted(&lab, "berlin2");
    let records = lab.roster.records();
    let needed = redeem::proof_of(&lab.roster, &records, &key("berlin2").public());
    assert!(needed.len() < records.len());
    let joined = Joined::verify(&invite.vdc, &secrets("berlin2"), &all[..needed.len()], NOW).expect("the chain");
    assert_eq!((joined.refused, joined.roster.len()), (0, needed.len()));
}

#[test]
fn chain_holds_when_those_who_gave_the_rights_were_closed() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let redemption = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    store(&mut lab, &redemption);
    // First the admin, then the registrar itself; everything true remains, inside the closings.
    for subject in ["paris1", "berlin1"] {
        let draft = lab.closing("owner", subject, &lab.roster.issued_by(&key(subject).public()));
        lab.issue("owner", draft);
        let records = lab.roster.records();
        let needed = redeem::proof_of(&lab.roster, &records, &key("berlin2").public()).len();
        let all = granted(&lab, "berlin2");
        let DoorResponse::Granted(proof) = prove(&lab.roster, &key("berlin2").public()) else {
            unreachable!("a grant")
        };
        assert_eq!(proof, all[..needed]);
        for part in [&proof, &all] {
            let joined = Joined::verify(&invite.vdc, &secrets("berlin2"), part, NOW).expect("a whole chain");
            assert_eq!((joined.refused, joined.roster.len()), (0, part.len()), "without {subject}");
        }
    }
}

#[test]
fn same_node_again_gets_the_same_answer_another_is_refused() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let first = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    store(&mut lab, &first);
    let state = first.state;
    let again = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("idempotent");
    assert_eq!((again.records.len(), &again.state, again.number_next), (0, &state, 500));
    let other = redeem(&lab, &state, &invite, "berlin1", "berlin3").expect_err("used up");
    assert!(other.is(RefusalCode::InviteUsed), "{other}");
    // Even when it has expired or was revoked since: the first answer may have been lost.
    let revoked = InviteState { revoked: true, expires: NOW, ..state.clone() };
    assert!(redeem(&lab, &revoked, &invite, "berlin1", "berlin2").is_ok());
    // With another WireGuard key it is renewed, and no use is counted.
    let lost = NodeSecrets::from_seeds(&key("berlin2").seed(), &[77; 32]);
    let (request, challenge) = answer(&invite, "berlin1", &lost, "berlin2");
    let renewed = state.redeem(&lab.view(), &key("berlin1"), 600, &request, challenge, NOW).expect("the same node");
    assert_eq!((renewed.records.len(), renewed.state.uses_left), (1, 0));
    store(&mut lab, &renewed);
    assert_eq!(lab.view().members[&key("berlin2").public()].wg, lost.wg_public());
    // Once revoked, it is a member no more.
    let draft = issue::revocation(&lab.view(), &key("paris1").public(), &key("berlin2").public(), "x", NOW, &[]);
    lab.issue("paris1", draft.expect("admin"));
    let refused = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect_err("revoked");
    assert!(refused.is(RefusalCode::Revoked));
}

#[test]
fn invite_with_several_uses_counts_them() {
    let mut lab = Lab::new();
    let (invite, mut state) = create(&lab, "berlin1", &InviteOptions { uses: 3, ..options(lab.berlin) });
    for node in ["a", "b", "c"] {
        let redemption = redeem(&lab, &state, &invite, "berlin1", node).expect("one of three");
        store(&mut lab, &redemption);
        state = redemption.state;
    }
    assert!(redeem(&lab, &state, &invite, "berlin1", "d").expect_err("used up").is(RefusalCode::InviteUsed));
    assert_eq!(state.redeemed.len(), 3);
}

#[test]
fn redemption_is_refused_with_its_reason() {
    let lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let code = |state: &InviteState, registrar: &str, change: &dyn Fn(&mut Redeem), now| {
        let (mut request, challenge) = answer(&invite, registrar, &secrets("x"), "x");
        change(&mut request);
        let refused = state.redeem(&lab.view(), &key(registrar), 1, &request, challenge, now).expect_err("refused");
        assert!(!refused.hint.is_empty());
        refused.code
    };
    let keep = |_: &mut Redeem| {};
    assert_eq!(code(&state, "berlin1", &keep, UnixTime(NOW.0 + HOUR + 1)), "invite-expired");
    assert_eq!(code(&InviteState { revoked: true, ..state.clone() }, "berlin1", &keep, NOW), "invite-revoked");
    assert_eq!(code(&state, "paris1", &keep, NOW), "wrong-registrar");
    assert_eq!(code(&InviteState { id: InviteId([0; 16]), ..state.clone() }, "berlin1", &keep, NOW), "invite-unknown");
    assert_eq!(code(&state, "berlin1", &|r| r.vdc.0[0] ^= 1, NOW), "wrong-vdc");
    let gone = InviteState { site: SiteNumber(9), ..state.clone() };
    assert_eq!(code(&gone, "berlin1", &keep, NOW), "cannot-issue");
    // Any proof, key or nonce that does not fit.
    for change in [
        &|r: &mut Redeem| r.invite_signature[0] ^= 1,
        &|r: &mut Redeem| r.node_signature[0] ^= 1,
        &|r: &mut Redeem| r.wg_proof[0] ^= 1,
        &|r: &mut Redeem| r.challenge[0] ^= 1,
        &|r: &mut Redeem| r.node = key("y").public(),
        &|r: &mut Redeem| r.wg = secrets("y").wg_public(),
        &|r: &mut Redeem| r.wg = WgKey([0; 32]),
    ] as [&dyn Fn(&mut Redeem); 7]
    {
        assert_eq!(code(&state, "berlin1", change, NOW), "bad-proof");
    }
    // The registrar's clock is behind what two registrars have signed.
    let early = UnixTime(NOW.0 - DAY);
    assert_eq!(code(&state, "berlin1", &keep, early), "clock");
}

#[test]
fn proofs_hold_for_one_link_and_one_challenge_only() {
    let lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let (request, _) = answer(&invite, "berlin1", &secrets("x"), "x");
    let replayed = |challenge| state.redeem(&lab.view(), &key("berlin1"), 1, &request, challenge, NOW);
    // Another peer replays it, even against the same question.
    let other_peer = Challenge::new(&[9; 32], key("eve").public(), Instant::now());
    assert!(replayed(other_peer).expect_err("another link").is(RefusalCode::BadProof));
    // The same peer replays it against another question.
    let other_question = Challenge::new(&[8; 32], key("x").public(), Instant::now());
    assert!(replayed(other_question).expect_err("another challenge").is(RefusalCode::BadProof));
    // Positive control.
    let same = Challenge::new(&[9; 32], key("x").public(), Instant::now());
    assert!(replayed(same).is_ok());
    // A man in the middle forwards it to the true registrar: the joiner dialled somebody else.
    let (forwarded, challenge) = answer(&invite, "mallory", &secrets("x"), "x");
    let refused = state.redeem(&lab.view(), &key("berlin1"), 1, &forwarded, challenge, NOW);
    assert!(refused.expect_err("another registrar").is(RefusalCode::BadProof));
}

#[test]
fn challenges_are_single_use_fresh_and_bounded() {
    let start = Instant::now();
    let mut open = Challenges::default();
    let peer = key("x").public();
    open.ask(&[1; 32], peer, start).expect("room");
    assert!(open.take(&peer, start).is_ok());
    assert!(open.take(&peer, start).expect_err("used").is(RefusalCode::ChallengeStale));
    open.ask(&[1; 32], peer, start).expect("room");
    let late = start + CHALLENGE_LIFETIME + Duration::from_millis(1);
    assert!(open.take(&peer, late).expect_err("stale").is(RefusalCode::ChallengeStale));
    for n in 0..Challenges::OPEN_MAX {
        open.ask(&[1; 32], Key([u8::try_from(n).expect("256 peers"); 32]), start).expect("room");
    }
    assert!(open.ask(&[1; 32], peer, start).expect_err("full").is(RefusalCode::Busy));
    assert!(open.ask(&[1; 32], Key([0; 32]), start).is_ok(), "asking again replaces");
    assert!(open.ask(&[1; 32], peer, late).is_ok(), "the stale make room");
    open.forget(&peer);
    assert!(open.take(&peer, late).is_err());
}

#[test]
fn founder_invite_makes_the_joiner_registrar_of_the_new_site() {
    let mut lab = Lab::new();
    let draft = issue::site(&lab.view(), &key("paris1").public(), &name("lisbon"), lab.paris, NOW).expect("admin");
    lab.issue("paris1", draft);
    let lisbon = lab.view().site_by_name("lisbon").expect("added").number;
    let founder = InviteOptions { founder: true, ..options(lisbon) };
    // Only an admin can give that away, and berlin's registrar has no say in lisbon at all.
    let refused = InviteState::create(&lab.view(), &key("berlin1"), vec![], &founder, InviteId([1; 16]), [1; 32], NOW);
    assert_eq!(refused.expect_err("not its site"), IssueError::NotRegistrar { site: "lisbon".to_owned() });
    let own = InviteOptions { founder: true, ..options(lab.berlin) };
    let refused = InviteState::create(&lab.view(), &key("berlin1"), vec![], &own, InviteId([1; 16]), [1; 32], NOW);
    assert_eq!(refused.expect_err("no admin"), IssueError::NotAdmin);
    let (invite, state) = create(&lab, "paris1", &founder);
    let redemption = redeem(&lab, &state, &invite, "paris1", "lisbon1").expect("granted");
    assert_eq!((redemption.records.len(), redemption.number_next), (2, 502));
    store(&mut lab, &redemption);
    let joined = Joined::verify(&invite.vdc, &secrets("lisbon1"), &granted(&lab, "lisbon1"), NOW).expect("joined");
    let registrars = joined.view.registrars_for(lisbon);
    assert_eq!(registrars.iter().map(|r| r.key).collect::<Vec<_>>(), [key("lisbon1").public()]);
    // It admits and renews on its own from now on.
    lab.admit("lisbon1", "lisbon2", lisbon);
    lab.renew("lisbon1", "lisbon1", UnixTime(NOW.0 + 1));
    assert_eq!(lab.view().find("lisbon2").expect("admitted").site, lisbon);
}

#[test]
fn joiner_believes_no_other_vdc_chain_or_key() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let redemption = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    store(&mut lab, &redemption);
    let good = granted(&lab, "berlin2");
    let verify = |records: &[ByteVec]| Joined::verify(&invite.vdc, &secrets("berlin2"), records, NOW).map(|_| ());
    assert!(matches!(verify(&[]), Err(JoinError::NotMember)));
    assert!(matches!(verify(&good[1..]), Err(JoinError::Genesis(_))));
    assert!(matches!(verify(&[ByteVec::from(vec![0xff])]), Err(JoinError::Record(_))));
    let own = redemption.records[0].encode();
    let without: Vec<_> = good.iter().filter(|r| ***r != own).cloned().collect();
    assert!(matches!(verify(&without), Err(JoinError::NotMember)));
    // A registrar that answers with a VDC of its own making, of the same name.
    let Body::Genesis(genesis) = lab.roster.genesis_record().body.clone() else { unreachable!("a genesis") };
    let fake = Genesis { owners: vec![key("mallory").public()], ..genesis };
    let vdc = fake.vdc_id();
    let fake = Signed::sign(&vdc, &key("mallory"), Office::root(&vdc), 1, Body::Genesis(fake), &[]);
    let mut swapped = good.clone();
    swapped[0] = ByteVec::from(fake.encode());
    assert!(matches!(verify(&swapped), Err(JoinError::OtherVdc { .. })));
    // Or with a record for a WireGuard key that is not ours.
    let other = NodeSecrets::from_seeds(&key("berlin2").seed(), &[5; 32]);
    assert!(matches!(Joined::verify(&invite.vdc, &other, &good, NOW), Err(JoinError::OtherKey)));
}

#[test]
fn member_renews_with_its_keys_until_it_is_revoked() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let redemption = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    store(&mut lab, &redemption);
    let ask = |secrets: &NodeSecrets| {
        let joiner = secrets.node.public();
        let challenge = Challenge::new(&[2; 32], joiner, Instant::now());
        let DoorResponse::Challenge(question) = challenge.question() else { unreachable!("a question") };
        let link = Link { registrar: key("berlin1").public(), joiner };
        (Renew::answer(&lab.vdc, secrets, &link, &question).expect("honest"), challenge)
    };
    let own = secrets("berlin2");
    // Long past its grace: still only expired.
    let late = UnixTime(NOW.0 + 60 * DAY);
    assert_eq!(lab.roster.view(late).members[&own.node.public()].standing, Standing::Expired);
    let (request, challenge) = ask(&own);
    let renewed = renew(&lab.roster.view(late), &key("berlin1"), 700, &request, challenge, late).expect("renewed");
    let mut after = lab.roster.clone();
    assert_eq!(after.insert(renewed), Outcome::New);
    assert_eq!(after.view(late).members[&own.node.public()].standing, Standing::Current);
    // A rotated WireGuard key, with proof.
    let rotated = NodeSecrets::from_seeds(&key("berlin2").seed(), &[6; 32]);
    let (request, challenge) = ask(&rotated);
    let renewed = renew(&lab.view(), &key("berlin1"), 701, &request, challenge, NOW).expect("renewed");
    assert!(matches!(&renewed.body, Body::Member(m) if m.wg == rotated.wg_public() && m.serial == 2));
    let (mut request, challenge) = ask(&rotated);
    request.wg = secrets("eve").wg_public();
    let refused = renew(&lab.view(), &key("berlin1"), 702, &request, challenge, NOW).expect_err("not its key");
    assert!(refused.is(RefusalCode::BadProof));
    // A stranger, a registrar of another site, and a revoked node.
    let (request, challenge) = ask(&secrets("stranger"));
    let refused = renew(&lab.view(), &key("berlin1"), 703, &request, challenge, NOW).expect_err("no member");
    assert!(refused.is(RefusalCode::NotMember));
    let subject = own.node.public();
    let draft = issue::revocation(&lab.view(), &key("paris1").public(), &subject, "x", NOW, &[]).expect("admin");
    let (request, challenge) = ask(&own);
    lab.issue("paris1", draft);
    let refused = renew(&lab.view(), &key("berlin1"), 704, &request, challenge, NOW).expect_err("revoked");
    assert!(refused.is(RefusalCode::Revoked));
}

#[test]
fn racing_redemptions_of_one_use_end_with_one_winner_if_states_are_replaced_in_order() {
    // Two boxes at once: the registrar's one task decides them one after the other, each on the state before it.
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let first = redeem(&lab, &state, &invite, "berlin1", "a").expect("first");
    store(&mut lab, &first);
    let second = redeem(&lab, &first.state, &invite, "berlin1", "b").expect_err("second");
    assert!(second.is(RefusalCode::InviteUsed));
}

#[test]
fn door_messages_and_states_keep_their_bytes() {
    let lab = Lab::new();
    let (invite, mut state) = create(&lab, "berlin1", &options(lab.berlin));
    state.redeemed.push((key("x").public(), None));
    let (redeem, challenge) = answer(&invite, "berlin1", &secrets("x"), "x");
    let link = Link { registrar: key("berlin1").public(), joiner: key("x").public() };
    let question = challenge.question();
    let DoorResponse::Challenge(asked) = &question else { unreachable!("a question") };
    let renew = Renew::answer(&lab.vdc, &secrets("x"), &link, asked).expect("honest");
    let hello = Hello { vdc: lab.vdc, invite: Some(invite.id) };
    let hex = |bytes: Vec<u8>| data_encoding::HEXLOWER.encode(&bytes);
    let messages = [
        ("token", invite.token()),
        ("state", hex(state.encode())),
        ("hello", hex(DoorRequest::Hello(hello).encode())),
        ("redeem", hex(DoorRequest::Redeem(redeem).encode())),
        ("renew", hex(DoorRequest::Renew(renew).encode())),
        ("challenge", hex(question.encode())),
        ("granted", hex(DoorResponse::Granted(vec![ByteVec::from(vec![1, 2])]).encode())),
        ("refused", hex(DoorResponse::Refused(Refusal::new(RefusalCode::Busy, "m", "h")).encode())),
    ];
    let text: String = messages.iter().map(|(kind, line)| format!("{kind} {line}\n")).collect();
    assert_eq!(include_str!("../../tests/golden/invite.txt"), text, "vdc/tests/golden/invite.txt would be:\n{text}");
    assert_eq!(InviteState::decode(&state.encode()).expect("canonical"), state);
    // As earlier releases wrote it, with the first member record of who joined.
    let before = messages[1].1.replace("818158206f2402", "818258206f2402") + "5820" + &"01".repeat(32);
    let before = data_encoding::HEXLOWER.decode(before.as_bytes()).expect("hexadecimal");
    let before = InviteState::decode(&before).expect("of an earlier release");
    assert_eq!(before.redeemed, [(key("x").public(), Some(Hash([1; 32])))]);
    for (kind, line) in &messages[2..] {
        let bytes = data_encoding::HEXLOWER.decode(line.as_bytes()).expect("hexadecimal");
        let again = match *kind {
            "hello" | "redeem" | "renew" => DoorRequest::decode(&bytes).expect("canonical").encode(),
            _ => DoorResponse::decode(&bytes).expect("canonical").encode(),
        };
        assert_eq!(again, bytes, "{kind}");
        for end in 0..bytes.len() {
            assert!(DoorRequest::decode(&bytes[..end]).is_err() && DoorResponse::decode(&bytes[..end]).is_err());
        }
    }
}

#[test]
fn oversize_and_foreign_messages_are_refused_before_they_take_memory() {
    assert!(DoorRequest::decode(&vec![0; DOOR_REQUEST_BYTES_MAX + 1]).is_err());
    assert!(DoorResponse::decode(&vec![0; DOOR_RESPONSE_BYTES_MAX + 1]).is_err());
    // A list that claims four thousand million records.
    assert!(DoorResponse::decode(&[0x82, 1, 0x82, 1, 0x9a, 0xff, 0xff, 0xff, 0xff]).is_err());
    let other_version = crate::codec::encode(&(2u32, Hello { vdc: crate::VdcId([0; 32]), invite: None }));
    assert!(DoorRequest::decode(&other_version).is_err());
    let long = Refusal::new(RefusalCode::Busy, &"x".repeat(9000), &"ü".repeat(9000));
    assert!(DoorResponse::decode(&DoorResponse::Refused(long).encode()).is_ok(), "what we say, others can read");
}

#[test]
fn roster_of_a_joiner_takes_the_rest_by_sync() {
    let mut lab = Lab::new();
    let (invite, state) = create(&lab, "berlin1", &options(lab.berlin));
    let redemption = redeem(&lab, &state, &invite, "berlin1", "berlin2").expect("granted");
    store(&mut lab, &redemption);
    let joined = Joined::verify(&invite.vdc, &secrets("berlin2"), &granted(&lab, "berlin2"), NOW).expect("joined");
    let mut own: Roster = joined.roster;
    let contact = issue::contact(&own.view(NOW), &key("berlin2").public(), Vec::new(), None).expect("a member");
    assert!(matches!(contact_body("berlin2", 1), Body::Contact(_)));
    let contact = contact.sign(&lab.vdc, &key("berlin2"), 1, &[]);
    assert_eq!(own.insert(contact.clone()), Outcome::New);
    offer_until_stable(&mut lab.roster, &[contact]);
    assert!(lab.view().members[&key("berlin2").public()].contact().is_some());
}
