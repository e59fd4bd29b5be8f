//! Security containers that guests cannot leave, cannot reach, or that do not hold what they promise.

use std::collections::HashSet;

use crate::model::{
    Container, ContainerIndex, Criteria, Glob, Policy, Selector, TagTest, Term, Traffic, Transfer,
};

use super::{Found, is_of};

const DEFAULT: ContainerIndex = ContainerIndex(0);

pub(super) fn warnings(policy: &Policy, found: &mut Found) {
    let reached = reached(policy);
    for (number, container) in (0u16..).zip(&policy.containers) {
        let index = ContainerIndex(number);
        let name = &container.name;
        for (place, transfer) in container.transfers.iter().enumerate() {
            if let Some(why) = never_fires(policy, index, place, transfer) {
                let message = format!(
                    "transfer \"{}\" of container \"{name}\" can never fire: {why}",
                    transfer.name
                );
                found.warn(&transfer.place, message);
            }
        }
        if index != DEFAULT && !reached.contains(&index) {
            let message =
                format!("container \"{name}\" is reached by no transfer: only a hand moves guests there");
            found.warn(&container.place, message);
        }
        if index != DEFAULT && has_no_way_back(policy, index) {
            let message = format!(
                "container \"{name}\" has no way back: expected release, a transfer out, or release: by-hand"
            );
            found.warn(&container.place, message);
        }
        if container.quarantine {
            leaks(policy, index, container, found);
        }
    }
    services(policy, found);
}

/// The containers in which guests may be without a hand's doing: they begin in the default one. A container that others
/// are nested in is in use if one of them is.
fn reached(policy: &Policy) -> HashSet<ContainerIndex> {
    let mut reached = HashSet::new();
    let mut next = vec![DEFAULT];
    while let Some(container) = next.pop() {
        if reached.insert(container) {
            // The transfers of the containers around it hold for its guests, too.
            let around = policy.chain(container);
            let transfers = around.flat_map(|outer| &policy.containers[outer.index()].transfers);
            next.extend(transfers.map(|transfer| transfer.to));
        }
    }
    let in_use: Vec<ContainerIndex> = reached.iter().copied().collect();
    for container in in_use {
        reached.extend(policy.chain(container));
    }
    reached
}

/// Neither it nor a container around it says how its guests are released, and no transfer leads them out of it.
fn has_no_way_back(policy: &Policy, index: ContainerIndex) -> bool {
    let nested = |inner, outer| policy.chain(inner).any(|one| one == outer);
    let says = |container: &Container| container.release.is_some() || container.by_hand;
    let leaves = |of: ContainerIndex| {
        let mut transfers = policy.containers[of.index()].transfers.iter();
        // What a container around it says leads nobody into where they are all the same.
        transfers.any(|transfer| !nested(transfer.to, index) && (of == index || !nested(index, transfer.to)))
    };
    policy
        .chain(index)
        .all(|around| !says(&policy.containers[around.index()]) && !leaves(around))
}

fn never_fires(
    policy: &Policy,
    container: ContainerIndex,
    place: usize,
    transfer: &Transfer,
) -> Option<String> {
    if !may_hold(policy, container, &transfer.when) {
        return Some("what it asks cannot be so of this container's guests".to_owned());
    }
    let rank =
        |transfer: &Transfer, place: usize| (-i64::from(transfer.priority), transfer.precedence, place);
    let is_quarantine = |transfer: &Transfer| policy.containers[transfer.to.index()].quarantine;
    let transfers = policy.containers[container.index()].transfers.iter();
    let first = transfers.enumerate().find(|(other, before)| {
        // The first does not fire for guests that are there already, nor out of quarantine for one that flaps.
        let always = policy.chain(before.to).all(|outer| outer != container)
            && (is_quarantine(before) || !is_quarantine(transfer));
        always && before.when == transfer.when && rank(before, *other) < rank(transfer, place)
    });
    first.map(|(_, before)| format!("transfer \"{}\" asks the same and comes first", before.name))
}

/// Whether something may be so of a guest of a container. Says no only where it is certain.
fn may_hold(policy: &Policy, container: ContainerIndex, criteria: &Criteria) -> bool {
    let nested = |inner, outer| policy.chain(inner).any(|one| one == outer);
    match criteria {
        Criteria::All(all) => {
            let denied = |one: &Criteria| all.contains(&Criteria::Not(Box::new(one.clone())));
            all.iter()
                .all(|one| may_hold(policy, container, one) && !denied(one))
        }
        Criteria::Any(any) => any.iter().any(|one| may_hold(policy, container, one)),
        // A guest of this container may be in one that is nested in it.
        Criteria::Container(asked) => nested(container, *asked) || nested(*asked, container),
        Criteria::Not(one) => match &**one {
            Criteria::Container(asked) => !nested(container, *asked),
            _ => true,
        },
        _ => true,
    }
}

/// What guests of a quarantine container send or receive and its own rules do not match meets the general rules.
fn leaks(policy: &Policy, index: ContainerIndex, container: &Container, found: &mut Found) {
    let about = |selector: &Selector| {
        let own = |term: &Term| matches!(term, Term::Container(one) if policy.chain(index).any(|outer| outer == *one));
        matches!(selector, Selector::All(terms) if !terms.is_empty() && terms.iter().all(own))
    };
    let catches = |from: &dyn Fn(&Selector) -> bool, to: &dyn Fn(&Selector) -> bool| {
        policy.rules.iter().any(|rule| {
            policy.chain(index).any(|outer| is_of(rule.owner, outer))
                && rule.traffic.iter().any(|traffic| *traffic == Traffic::default())
                && from(&rule.from)
                && to(&rule.to)
        })
    };
    let any = |selector: &Selector| *selector == Selector::Any;
    for (side, closed) in [
        ("send", catches(&about, &any)),
        ("are sent", catches(&any, &about)),
    ] {
        if !closed {
            let message = format!(
                "container \"{}\" is a quarantine, and what its guests {side} may meet general rules: expected a last rule of its own {}",
                container.name,
                if side == "send" {
                    "from: members, to: any"
                } else {
                    "from: any, to: members"
                }
            );
            found.warn(&container.place, message);
        }
    }
}

/// Security services whose tags nothing asks for, and which no container wants.
fn services(policy: &Policy, found: &mut Found) {
    let mut asked: Vec<&TagTest> = Vec::new();
    let containers = &policy.containers;
    let transfers = containers.iter().flat_map(|one| &one.transfers);
    let all = transfers
        .map(|transfer| &transfer.when)
        .chain(
            containers
                .iter()
                .filter_map(|one| Some(&one.release.as_ref()?.when)),
        )
        .chain(policy.templates.iter().map(|template| &template.when))
        .chain(&policy.criteria);
    all.for_each(|criteria| tags(criteria, &mut asked));
    for service in &policy.security_services {
        let wanted = containers
            .iter()
            .any(|container| container.services.contains(&service.name));
        let matters = |test: &&TagTest| test.service != Glob::any() && test.service.matches(&service.name);
        if !wanted && !asked.iter().any(matters) {
            let message = format!(
                "security service \"{}\" is wanted by no container, and nothing asks for its tags",
                service.name
            );
            found.warn(&service.place, message);
        }
    }
}

fn tags<'a>(criteria: &'a Criteria, list: &mut Vec<&'a TagTest>) {
    match criteria {
        Criteria::All(all) | Criteria::Any(all) => all.iter().for_each(|one| tags(one, list)),
        Criteria::Not(one) | Criteria::Neighbour(one) => tags(one, list),
        Criteria::Tag(test) => list.push(test),
        _ => {}
    }
}
