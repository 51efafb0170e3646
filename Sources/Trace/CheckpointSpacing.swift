import VMCore

/// How far apart the checkpoints of a recording are: the row `checkpoints` of `meta`.
public struct CheckpointSpacing: Codable, Equatable, Sendable {
    /// What was asked for, in the words of the command line.
    public var policy: String
    /// The widest distance to which they were spread because they took too much of the run's time; nil where they
    /// never were.
    public var spreadTo: Nanoseconds?

    public static let key = "checkpoints"

    public init(policy: String, spreadTo: Nanoseconds? = nil) {
        self.policy = policy
        self.spreadTo = spreadTo
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        policy = try values.decodeIfPresent(String.self, forKey: .policy) ?? "none"
        spreadTo = try values.decodeIfPresent(Nanoseconds.self, forKey: .spreadTo)
    }

    private enum CodingKeys: String, CodingKey {
        case policy
        case spreadTo = "spread_to_ns"
    }
}
