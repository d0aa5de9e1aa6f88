// Nodes offered to somebody else: what block-export-add makes. A kind of export is an ExportType in
// the table of export_types.cc; everything common to all kinds is here.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "monitor/services.h"

namespace vise {

class Object;

class Export {
 public:
  virtual ~Export() = default;
  /// What is exported at present: jobs may move an export to another node.
  virtual Node& node() const = 0;
  virtual bool has_clients() const = 0;
  /// Takes no more clients, disconnects those there are, waits for their requests and lets go of
  /// the node. Called once, before destruction. Must not need Services::turn().
  virtual Task<void> stop() = 0;
};

/// A kind of export.
struct ExportType {
  qapi::BlockExportType type;
  /// The node is there; whether it may be written to has been checked. Throws Error.
  Task<std::unique_ptr<Export>> (*make)(Services& services, qapi::BlockExportOptions options);
};

class ExportTable {
 public:
  /// `types` outlive the table.
  explicit ExportTable(std::vector<const ExportType*> types) : types_(std::move(types)) {}
  ExportTable(const ExportTable&) = delete;
  ~ExportTable();  // after stop_all() (asserted)

  struct Entry {
    std::string id;
    qapi::BlockExportType type;
    std::unique_ptr<Export> object;
    std::shared_ptr<Object> iothread;  // held so that it stays; null: none was named
    bool shutting_down = false;
  };
  /// In order of addition.
  const std::vector<std::unique_ptr<Entry>>& entries() const { return entries_; }
  /// Null if there is none of that id.
  Entry* find(std::string_view id) const;

  /// Throws Error(EINVAL / EEXIST / EROFS), or what the type does.
  Task<void> add(Services& services, qapi::BlockExportOptions options);
  /// Ends an export and tells so (BLOCK_EXPORT_DELETED). Nothing, if it is ending already.
  Task<void> remove(Services& services, std::string id);
  /// Ends all exports; of one type, where that is given.
  Task<void> stop_all(Services& services);
  Task<void> stop_all(Services& services, qapi::BlockExportType type);

 private:
  std::vector<const ExportType*> types_;
  std::vector<std::unique_ptr<Entry>> entries_;
};

}  // namespace vise
