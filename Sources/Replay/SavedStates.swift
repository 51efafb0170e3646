import VMCore

/// A machine state kept in memory.
struct SavedState {
    var position: Position
    var mark: ReplayEnvironment.Mark
    var cpu: CPUState
    var memory: MemoryImage
    /// Nil where they aren't run.
    var devices: DeviceReplay.Mark?
    /// Kept because the way there took a while, not because it is near the position.
    var isWaypoint: Bool
}

/// The states that a timeline keeps: few, and dense only where it stands.
struct SavedStates {
    /// What all states together may take: enough for some 60,000 changed pages.
    static let byteLimit = 256 << 20
    /// Waypoints: 20 ms of replay apart when they are made, they cut 5 s into pieces before the first is given up.
    private static let waypointLimit = 256

    /// Ascending by position, which no two share.
    private(set) var states: [SavedState] = []
    /// States other than waypoints: a few for each doubling of the distance.
    private let nearLimit: Int
    private let pages: PageCount

    init(exits: UInt64, pages: PageCount) {
        nearLimit = 8 + 3 * (UInt64.bitWidth - exits.leadingZeroBitCount)
        self.pages = pages
    }

    /// The latest state at or before `position`.
    func latest(atOrBefore position: Position) -> SavedState? {
        let index = index(after: position)
        return index > 0 ? states[index - 1] : nil
    }

    private func index(after position: Position) -> Int {
        var (low, high) = (0, states.count)
        while low < high {
            let middle = (low + high) / 2
            if states[middle].position <= position { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Adds a state, and gives up others where there are too many. `here` is where the timeline stands or is going.
    mutating func insert(_ state: SavedState, near here: Position) {
        let index = index(after: state.position)
        if index > 0, states[index - 1].position == state.position {
            let isWaypoint = states[index - 1].isWaypoint || state.isWaypoint
            states[index - 1] = state
            states[index - 1].isWaypoint = isWaypoint
        } else {
            states.insert(state, at: index)
        }
        if states.count(where: { !$0.isWaypoint }) > nearLimit { remove(leastUseful(near: here, waypoints: false)) }
        if states.count(where: \.isWaypoint) > Self.waypointLimit { remove(leastUseful(near: here, waypoints: true)) }
        makeRoom(pages: 0, near: here)
    }

    /// Gives up states until so many pages fit, or none is left.
    ///
    /// - Returns: whether they fit.
    @discardableResult
    mutating func makeRoom(pages count: Int, near here: Position) -> Bool {
        while bytes + count * pageSize > Self.byteLimit {
            guard !states.isEmpty else { return false }
            remove(leastUseful(near: here, waypoints: false) ?? leastUseful(near: here, waypoints: true))
        }
        return true
    }

    /// Page copies, also those that only the timeline's present memory shares, and the events that the marks hold.
    var bytes: Int {
        var chunks: [UInt64: Int] = [:]
        for state in states { chunks[state.mark.held.chunk] = state.mark.held.bytes }
        return pages.live * pageSize + chunks.values.reduce(0, +)
    }

    private mutating func remove(_ index: Int?) {
        if let index { states.remove(at: index) }
    }

    /// The state whose neighbours leave the smallest gap without it: for waypoints in exits, for others in proportion to
    /// their distance, which thins them to a few for each doubling.
    private func leastUseful(near here: Position, waypoints: Bool) -> Int? {
        let candidates = states.indices.filter { states[$0].isWaypoint == waypoints }
        func score(_ place: Int) -> Double {
            let before = place > 0 ? states[candidates[place - 1]].position : Position(exit: .start)
            let after = place + 1 < candidates.count
                ? states[candidates[place + 1]].position : max(here, states[candidates[place]].position)
            let gap = Self.distance(before, after)
            return waypoints ? gap : gap / (Self.distance(states[candidates[place]].position, here) + Self.instruction)
        }
        let place = candidates.indices.min { score($0) < score($1) }
        return place.map { candidates[$0] }
    }

    /// What an instruction counts where an exit counts 1.
    private static let instruction = 1 / Double(1 << 32)

    private static func distance(_ a: Position, _ b: Position) -> Double {
        if a.exit == b.exit {
            return Double(max(a.instructions, b.instructions) - min(a.instructions, b.instructions)) * instruction
        }
        return Double(max(a.exit.rawValue, b.exit.rawValue) - min(a.exit.rawValue, b.exit.rawValue))
    }
}
